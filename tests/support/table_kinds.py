"""Kinds of tables of paths and labels. `test_folders.py` reads them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from support.folder_kinds import kind
from support.folders import flat, put, table


def pictures(root: Path, count: int = 10) -> list[tuple[str, str]]:
    """Write pictures into one folder, and return their names and labels."""
    return [(put(root / "images" / f"{i:03}.png").name, "dog" if i % 2 else "cat") for i in range(count)]


@kind(8, 2)
def a_csv_of_relative_paths(root):
    return table(root, "path,label", [(f"images/{name}", label) for name, label in pictures(root)])


@kind(8, 2)
def a_csv_without_a_header(root):
    return table(root, "", [(f"images/{name}", label) for name, label in pictures(root)])


@kind(8, 2)
def a_tsv_with_the_label_first(root):
    return table(root, "Class\tFile Name", [(label, name) for name, label in pictures(root)], "a.tsv", "\t")


@kind(8, 2, says="Columns of labels.csv that are not used: weight")
def a_csv_with_semicolons_backslashes_and_other_columns(root):
    rows = [(i, rf"C:\pets\images\{name}", label, 3.5) for i, (name, label) in enumerate(pictures(root))]
    return table(root, ";filename;category;weight", rows, delimiter=";")


@kind(6, 2, validation=2, classes=("2", "10"))
def a_csv_with_a_column_of_parts_and_numbers_as_labels(root):
    names = ["train"] * 6 + ["val"] * 2 + ["TEST"] * 2
    rows = [
        (name, 10 if label == "cat" else 2, part) for (name, label), part in zip(pictures(root), names, strict=True)
    ]
    return table(root, "image,target,split", rows)


@kind(7, 3)
def a_csv_with_a_column_that_says_which_pictures_are_for_testing(root):
    return table(root, "path,label,is_test", [(*row, number > 6) for number, row in enumerate(pictures(root))])


@kind(
    8,
    2,
    left_out={
        "rows whose picture is missing or not unique": 1,
        "rows without a label": 1,
        "rows that repeat another row": 1,
    },
)
def a_csv_with_rows_that_cannot_be_used(root):
    rows = pictures(root)
    put(root / "images" / "unlabelled.png")
    return table(root, "path,label", [*rows, ("gone.png", "cat"), ("unlabelled.png", ""), rows[0]])


@kind(8, 2, says="labels are those of labels.csv")
def a_folder_of_pictures_with_a_table(root):
    return table(root, "image_id,breed", [(name.removesuffix(".png"), label) for name, label in pictures(root)]).parent


@kind(
    6,
    2,
    says="labels are those of labels.csv",
    left_out={"files that are not pictures": 1, "pictures that the table does not list": 3},
)
def a_competition_with_a_table_of_labels_and_a_sample_of_answers(root):
    rows = [(put(root / "train" / f"{i}.jpg").stem, "dog" if i % 2 else "cat") for i in range(8)]
    for number in range(3):
        put(root / "test" / f"t{number}.jpg")
    table(root, "id,cat,dog", [("0", 0.5, 0.5)], "sample_submission.csv")
    return table(root, "id,breed", rows).parent


@kind(16, 4, classes=("part_1", "part_2"), says="Are these classes. The names part_1, part_2 differ only in a number")
def numbered_folders_without_a_table(root):
    return flat(root, part_1=10, part_2=10)


@kind(6, 2, says="labels are those of metadata.csv")
def numbered_folders_that_only_cut_the_pictures_into_pieces(root):
    rows = [
        (f"L{i}", put(root / f"skin_images_part_{i % 2 + 1}" / f"{i:03}.jpg").stem, "dog" if i % 3 else "cat")
        for i in range(8)
    ]
    return table(root, "lesion_id,image_id,dx", rows, "metadata.csv").parent


@kind(5, 2, says="labels are those of train.csv, test.csv", left_out={"pictures that the table does not list": 3})
def a_folder_of_pictures_with_a_table_for_each_part(root):
    rows = pictures(root)
    table(root, "filename,label", rows[:5], "train.csv")
    return table(root, "filename,label", rows[5:7], "test.csv").parent


@kind(
    8,
    2,
    classes=("cat", "cat dog"),
    says="Cells that seem to hold several labels are read as one class each: cat dog",
    left_out={"files that are not pictures": 1, "pictures that the table does not list": 3},
)
def a_competition_whose_test_table_has_no_labels(root):
    rows = [(put(root / "train" / f"{i}.jpg").stem, "cat dog" if i % 2 else "cat") for i in range(10)]
    table(root, "id", [(put(root / "test" / f"t{i}.jpg").stem,) for i in range(3)], "test.csv")
    return table(root, "id,breed", rows, "train.csv").parent


@kind(6, 4, says="labels are those of train/_classes.csv, test/_classes.csv")
def a_column_for_each_class_as_label_tools_export_it(root):
    for part, count in (("train", 6), ("test", 4)):
        rows = [(name, int(label == "cat"), int(label == "dog")) for name, label in pictures(root / part, count)]
        table(root / part, "filename, cat, dog", rows, "_classes.csv")
    return root


@kind(8, 2, says="Columns of labels.csv that are not used: Unnamed: 0, id")
def numbers_that_happen_to_be_names_of_files(root):
    names = [put(root / "images" / f"{i}.png").name for i in range(10)]
    rows = [(i, i % 2, names[9 - i], "cat" if i % 2 else "dog") for i in range(10)]
    return table(root, "Unnamed: 0,id,image,label", rows)


@kind(8, 2, says="not used: label")
def a_label_in_numbers_beside_its_name(root):
    rows = [(i, i % 2, "cat" if i % 2 else "dog") for i in range(10)]
    pictures(root / "numbered")
    return table(root, "image_id,label,label_name", [(f"{i:03}", number, name) for i, number, name in rows])


@kind(8, 2, classes=("cat, big", "dog, big"))
def quoted_cells_behind_spaces(root):
    return table(root, '"Image", "Class"', [(f'"{name}"', f' "{label}, big"') for name, label in pictures(root)])


@kind(8, 2)
def names_that_differ_in_case_and_accents(root):
    rows = [(f"Café {i}.JPG", "dog" if i % 2 else "cat") for i in range(10)]
    for name, _ in rows:
        put(root / "images" / unicodedata.normalize("NFD", name).lower())
    return table(root, "file,label", rows)


@kind(8, 2)
def addresses_as_label_tools_export_them(root):
    for i in range(10):
        put(root / "upload" / f"my cat {i}.png")
    rows = [(i, f"https://host/upload/my%20cat%20{i}.png?d=1", "cat" if i % 2 else "dog", 3.5) for i in range(10)]
    return table(root, "annotation_id,image,choice,lead_time", rows)


@kind(6, 4, says="names no parts; they are those of the folders")
def paths_that_name_the_parts(root):
    names = [f"{part}/{i}.png" for part, count in (("train", 6), ("test", 4)) for i in range(count)]
    rows = [(put(root / name).relative_to(root), "dog" if i % 2 else "cat") for i, name in enumerate(names)]
    return table(root, "file_name,label", rows).parent


@kind(4, 2, left_out={"files that are not pictures": 1, "pictures that the table does not list": 6})
def a_competition_with_the_same_names_in_both_parts(root):
    for part in ("train-jpg", "test-jpg"):
        for i in range(6):
            put(root / part / f"{i}.jpg")
    table(root, "id,tag", [("0", "?")], "sample_submission_v2.csv")
    return table(
        root, "id,tag", [(f"train-jpg/{i}.jpg", "dog" if i % 2 else "cat") for i in range(6)], "train_v2.csv"
    ).parent


@kind(8, 2, left_out={"pictures that the table does not list": 10}, says="not used: mask")
def a_table_in_a_folder_beside_images_and_masks(root):
    rows = pictures(root)
    for name, _ in rows:
        put(root / "masks" / name)
    return table(
        root / "meta", "mask,image,label", [(f"masks/{n}", f"images/{n}", label) for n, label in rows]
    ).parents[1]


@kind(6, 4, says="labels are those of train.txt, test.txt")
def lists_of_paths_and_labels_without_commas(root):
    rows = [(f"my images/{name}", label) for name, label in pictures(root / "x")]
    (root / "x" / "images").rename(root / "my images")
    (root / "x").rmdir()
    table(root, "", rows[:6], "train.txt", " ")
    return table(root, "", rows[6:], "test.txt", " ").parent


@kind(8, 2, left_out={"rows without a label": 1, "pictures that the table does not list": 1})
def a_table_as_notebooks_write_it(root):
    rows = [(f"../images/{name}", label, "") for name, label in pictures(root)]
    rows.append((f"../images/{put(root / 'images' / 'x.png').name}", "nan", ""))
    path = table(root / "meta", "path,label,", rows)
    path.write_bytes(path.read_text().encode("utf-16-le"))
    return root
