"""`cifar.models.rollout`: labels, traffic split and promotions, stored in files that a crash never leaves half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scipy.stats import chisquare
from support.samples import write_two_versions

from cifar.cli.main import main
from cifar.errors import (
    BadParameter,
    LabelNotFound,
    NothingToRollBack,
    RolloutChanged,
    VersionNotFound,
    VersionUnusable,
)
from cifar.files import TEMPORARY_PREFIX
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.models.rollout import Rollout, RolloutLog, Split, shadow_split, traffic_split
from cifar.serving.inference.loaded import LoadedVersions
from cifar.settings import ROOT, Settings

KEY = b"k" * 32


@pytest.fixture
def log(tmp_path) -> RolloutLog:
    """The rollout of two versions of the tutorial's network, before any change."""
    return RolloutLog(Registry(write_two_versions(tmp_path), "cifar_classifier"))


def accept(_: object) -> None:
    """A `check_loadable` that accepts every version."""


def test_before_the_first_change_the_highest_version_gets_all_traffic(log):
    """A new registry serves without any setup."""
    rollout = log.current()
    assert (rollout.revision, rollout.labels, rollout.traffic) == (0, {"stable": 2}, {"stable": 100})
    assert log.changes() == []


def test_promotions_and_rollbacks_are_logged_with_author_and_time(log):
    """Two promotions are followed by two rollbacks; then there is nothing left to undo."""
    for number in (1, 2):
        log.promote(number, by="ada", check_loadable=accept)
    assert log.current().history == [2, 1]
    assert [log.rollback(by="bob", check_loadable=accept).stable for _ in range(2)] == [1, 2]
    with pytest.raises(NothingToRollBack, match="Version 2 was not promoted over another one"):
        log.rollback(by="bob", check_loadable=accept)
    assert [(change.by, change.action) for change in log.changes()] == [
        ("ada", "promote 1"),
        ("ada", "promote 2"),
        ("bob", "rollback to 1"),
        ("bob", "rollback to 2"),
    ]
    assert all(change.at.endswith("+00:00") for change in log.changes())


def test_a_canary_gets_its_share_until_it_is_promoted(log):
    """The promotion removes the version's other labels and gives it all traffic."""
    log.promote(1, by="ada", check_loadable=accept)
    log.label("canary", 2, by="ada")
    rollout = log.split({"stable": 90, "canary": 10}, shadow={"canary": 20}, by="ada")
    assert (rollout.traffic, rollout.shadow, rollout.live) == ({"stable": 90, "canary": 10}, {"canary": 20}, [1, 2])
    with pytest.raises(BadParameter, match="canary has traffic"):
        log.label("canary", None, by="ada")
    rollout = log.promote(2, by="ada", check_loadable=accept)
    assert (rollout.labels, rollout.traffic, rollout.shadow) == ({"stable": 2}, {"stable": 100}, {})


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda log: log.split({"stable": 90, "canary": 9}, by="x"), BadParameter, "add to 100 percent; .* is 99"),
        (lambda log: log.split({"stable": 110, "canary": -10}, by="x"), BadParameter, "from 0 to 100"),
        (lambda log: log.split({"stable": 90, "blue": 10}, by="x"), LabelNotFound, "no label 'blue'; .*stable, canary"),
        (lambda log: log.split({"stable": 100}, shadow={"stable": 5}, by="x"), BadParameter, "compared with"),
        (lambda log: log.label("blue", 9, by="x"), VersionNotFound, "no version 9; there are: 1, 2"),
        (lambda log: log.label("Blue!", 1, by="x"), BadParameter, "small letters"),
        (lambda log: log.label("stable", 1, by="x"), BadParameter, "promote"),
        (lambda log: log.label("blue", None, by="x"), LabelNotFound, "no label 'blue'"),
        (lambda log: log.promote(9, by="x", check_loadable=accept), VersionNotFound, "no version 9"),
    ],
)
def test_an_invalid_change_is_refused_with_a_reason_and_changes_nothing(log, change, error, sentence):
    """The log is the same as before."""
    log.label("canary", 1, by="ada")
    before = log.changes()
    with pytest.raises(error, match=sentence):
        change(log)
    assert log.changes() == before


def test_a_version_that_cannot_be_loaded_is_not_promoted(log):
    """A changed file must not get traffic."""
    (log.registry.base / "1" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(VersionUnusable, match="not the file that was exported"):
        log.promote(1, by="ada", check_loadable=Predictor.load)
    assert log.current().revision == 0


def test_of_two_changes_at_the_same_time_one_is_made_and_the_other_refused(log):
    """Sixteen threads, ten times: no revision is skipped or overwritten."""
    outcomes: Counter[str] = Counter()

    def promote(number: int) -> None:
        try:
            log.promote(number, by=f"caller {number}", check_loadable=accept)
            outcomes["made"] += 1
        except RolloutChanged:
            outcomes["refused"] += 1

    with ThreadPoolExecutor(16) as pool:
        for _ in range(10):
            list(pool.map(promote, [1, 2] * 8))
    revisions = [change.revision for change in log.changes()]
    assert revisions == list(range(1, outcomes["made"] + 1))
    assert outcomes["made"] + outcomes["refused"] == 160
    assert list(log.folder.glob(".*")) == []


def test_a_read_only_folder_can_be_read_and_a_change_is_refused_with_the_reason(log):
    """For example in a container that mounts the models read-only."""
    log.promote(1, by="ada", check_loadable=accept)
    code = (
        "import os, sys; from pathlib import Path; from cifar.models.registry import Registry; from cifar.models.rollout import RolloutLog\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "log = RolloutLog(Registry(Path(sys.argv[1]), 'cifar_classifier')); print(log.current().stable)\n"
        "log.promote(2, by='x', check_loadable=lambda _: None)"
    )
    log.folder.chmod(0o555)
    if (
        os.getuid() == 0
    ):  # root can write everywhere, so the process below runs as another user, which must find the folder
        for folder in list(log.folder.parents)[:-1]:
            folder.chmod(folder.stat().st_mode | 0o055)
    command = [sys.executable, "-c", code, str(log.registry.base.parent)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout == "1\n", result.stderr
    message = "RegistryReadOnly: The rollout cannot be changed here: cifar_classifier/.routing cannot be written"
    assert message in result.stderr


def test_the_error_for_a_damaged_change_names_its_file(log):
    """An operator may have edited it. The message says how to return to the change before it."""
    log.promote(1, by="ada", check_loadable=accept)
    (log.folder / "1.json").write_text("{}")
    with pytest.raises(VersionUnusable, match=r"\.routing/1\.json is not a usable rollout"):
        log.current()


def test_a_pinned_version_is_stable_whatever_was_promoted(log):
    """The setting takes precedence, and a promotion, which would have no effect, is refused."""
    log.promote(1, by="ada", check_loadable=accept)
    pinned = RolloutLog(log.registry, pinned=2)
    assert pinned.current().stable == 2
    with pytest.raises(BadParameter, match="CIFAR_MODEL_VERSION pins version 2"):
        pinned.promote(1, by="ada", check_loadable=accept)
    pinned.label("canary", 2, by="ada")
    assert log.current().labels == {"stable": 1, "canary": 2}, "the pinned version is not written to the log"


USERS = [f"user {i}" for i in range(20_000)]


@pytest.mark.parametrize("shares", [{"stable": 90, "canary": 10}, {"stable": 50, "a": 30, "b": 20}])
def test_users_are_split_by_the_percentages_and_each_user_always_gets_the_same_version(shares):
    """Chi-square test over 20,000 users; a second split with the same key assigns every user alike."""
    numbers = dict(zip(shares, range(1, 9), strict=False))
    split = Split({numbers[label]: share for label, share in shares.items()}, KEY)
    chosen = [split(user) for user in USERS]
    counts = Counter(chosen)
    expected = [len(USERS) * share / 100 for share in shares.values()]
    assert chisquare([counts[numbers[label]] for label in shares], expected).pvalue > 0.001
    again = Split({numbers[label]: share for label, share in shares.items()}, KEY)
    assert [again(user) for user in USERS] == chosen
    other = Split({numbers[label]: share for label, share in shares.items()}, b"o" * 32)
    assert [other(user) for user in USERS] != chosen, "the assignment depends on the key"


def test_a_canary_that_grows_keeps_its_users(log):
    """No user switches back and forth while a version is rolled out."""
    log.label("canary", 1, by="ada")
    on_canary: set[str] = set()
    for percent in (0, 5, 10, 50, 100):
        choose = traffic_split(log.split({"canary": percent, "stable": 100 - percent}, by="ada"), KEY)
        before, on_canary = on_canary, {user for user in USERS[:2000] if choose(user) == 1}
        assert before <= on_canary
    assert len(on_canary) == 2000


def cifar(capsys, *words: str) -> tuple[int, str, str]:
    status = main(["models", *words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_the_command_line_promotes_splits_and_shows_the_log(log, monkeypatch, capsys):
    """All commands once, with real loading of versions; data goes to stdout, messages to stderr."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(log.registry.base.parent))
    assert cifar(capsys, "promote", "1")[:2] == (0, "stable=100 (version 1)\n")
    assert cifar(capsys, "label", "canary=2")[0] == 0
    assert cifar(capsys, "traffic", "stable=90", "canary=10")[1] == "stable=90 (version 1) canary=10 (version 2)\n"
    rows = [line.split("\t") for line in cifar(capsys, "list")[1].splitlines()]
    assert [(row[0], *row[-2:]) for row in rows] == [
        ("version", "labels", "traffic"),
        ("1", "stable", "90"),
        ("2", "canary", "10"),
    ]
    status, _, words = cifar(capsys, "traffic", "stable=90", "canary=5")
    assert (status, words) == (1, "cifar: Traffic must add to 100 percent; stable=90 canary=5 is 95.\n")
    assert cifar(capsys, "rollback")[1] == "stable=100 (version 2)\n"
    changes = json.loads(cifar(capsys, "log", "--json")[1])
    assert [change["action"] for change in changes] == [
        "promote 1",
        "label canary=2",
        "traffic stable=90 canary=10",
        "rollback to 2",
    ]
    assert all("@" in change["by"] for change in changes)


def test_the_command_line_explains_a_useless_canary_and_an_impossible_rollback(log, monkeypatch, capsys):
    """A canary label on the stable version gets no trial traffic; without a promotion there is nothing to undo."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(log.registry.base.parent))
    status, _, words = cifar(capsys, "label", "canary=2")
    assert (status, "canary is the stable version too, so it gets no trial traffic" in words) == (0, True)
    assert "no trial traffic" not in cifar(capsys, "promote", "1")[2]
    log.promote(2, by="ada", check_loadable=accept)
    log.rollback(by="ada", check_loadable=accept)
    log.rollback(by="ada", check_loadable=accept)
    status, _, words = cifar(capsys, "rollback")
    assert (status, "none to go back to. Any version can be promoted" in words) == (1, True)


def test_the_error_for_a_deleted_stable_version_says_what_to_do(log):
    """The message explains where the number comes from, since the user did not type it."""
    log.promote(1, by="ada", check_loadable=accept)
    shutil.rmtree(log.registry.base / "1")
    with pytest.raises(
        VersionNotFound, match=r"has no version 1; there are: 2\. Version 1 is the stable one; promote another"
    ):
        log.stable_version()


def test_wrong_use_of_the_command_line_exits_with_2():
    """For example a label without a version."""
    for words in (["label", "canary"], ["traffic", "stable"], ["promote", "zero"], ["label"]):
        assert main(["models", *words]) == 2


def test_the_rollout_folder_is_neither_a_version_nor_a_problem_of_the_registry(log):
    """It is hidden, so TensorFlow Serving and the registry ignore it. A file that a killed writer left in it is ignored too."""
    log.promote(1, by="ada", check_loadable=accept)
    (log.folder / f"{TEMPORARY_PREFIX}killed").write_text("{")
    assert log.promote(1, by="ada", check_loadable=accept).revision == 2
    assert len(log.changes()) == 2
    assert log.registry.numbers() == [1, 2]
    assert log.registry.problems() == {}
    assert Path(log.folder).name.startswith(".")


@pytest.mark.parametrize(
    "change", [{"traffic": {"canary": 100}}, {"labels": {"canary": 1}}, {"traffic": {"stable": 90}}, {"revision": 7}]
)
def test_a_running_server_ignores_an_inconsistent_change_and_follows_the_next_valid_one(log, change):
    """The file was written by hand, or is a copy of another revision. The server reports it and serves as before."""
    good = log.promote(1, by="ada", check_loadable=accept)
    versions = LoadedVersions(log.registry, Settings(registry=log.registry.base.parent))
    versions.load_default()
    file = log.folder / "2.json"
    file.write_text(good.model_copy(update={"revision": 2, **change}).model_dump_json())
    versions.refresh()
    why = "it is revision 7" if "revision" in change else "ValidationError"
    assert versions.problem.startswith(f"cifar_classifier/.routing/2.json is not a usable rollout ({why})")
    assert versions.if_loaded(user="anybody").predictor.version.number == 1
    file.unlink()
    log.promote(2, by="ada", check_loadable=accept)
    versions.refresh()
    assert versions.if_loaded(user="anybody").predictor.version.number == 2


def test_a_version_with_two_shadow_labels_gets_the_larger_share():
    """Half of the requests for one label and a tenth for the other is half of them, in either order."""
    labels = {"stable": 1, "candidate": 2, "canary": 2}
    for shadow in ({"candidate": 50, "canary": 10}, {"canary": 10, "candidate": 50}):
        rollout = Rollout(revision=1, labels=labels, traffic={"stable": 100}, shadow=shadow)
        split = shadow_split(rollout, KEY)[2]
        assert sum(split(f"request {at}") is not None for at in range(2000)) / 2000 == pytest.approx(0.5, abs=0.05)
