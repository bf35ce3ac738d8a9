// Takes photos that are chosen, dropped or pasted anywhere on the page. The content decides what is an image, as on the server.
(() => {
  const SIGNATURES = [
    [/^\xff\xd8\xff/, "image/jpeg"], [/^\x89PNG/, "image/png"], [/^GIF8/, "image/gif"], [/^RIFF....WEBP/s, "image/webp"],
    [/^BM/, "image/bmp"], [/^(II\*\0|MM\0\*)/, "image/tiff"], [/^....ftypavi[fs]/s, "image/avif"], [/^....ftyp(hei|hev|mif1|msf1)/s, "image/heic"],
  ];
  const ENDING = /\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|avif|hei[cf])$/i;
  let passing = false; // true while a change event of our own passes to Gradio
  cifar.sendAgain = null; // repeats the last choice of a photo

  async function typeOf(file) {
    const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 16).arrayBuffer()));
    const [, type] = SIGNATURES.find(([signature]) => signature.test(head)) ?? [];
    // the server explains what is wrong with other content
    return type ?? (file.type.startsWith("image/") ? file.type : ENDING.test(file.name) ? "image/jpeg" : null);
  }

  async function take(files) {
    const [file] = files;
    const limit = window.gradio_config?.max_file_size || Infinity;
    cifar.showNote(files.length > 1 ? cifar.text("photo.several") : null);
    const type = await typeOf(file).catch(() => "");
    if (type === "") return cifar.showProblem(cifar.text("batch.unreadable"));
    if (!type) return cifar.showProblem(cifar.text("photo.no_image", { name: file.name }));
    if (file.size > limit) return cifar.showProblem(cifar.tooLarge(limit));
    cifar.showProblem(null);
    cifar.sendAgain = () => feed(new File([file], file.name, { type }));
    cifar.sendAgain();
  }

  // Gives a file to Gradio's component, which accepts only files with an image type.
  async function feed(file) {
    document.querySelector("[data-live=stop]:not([hidden])")?.click();
    document.querySelector("#tabs [role=tab][data-tab-id=classify][aria-selected=false]")?.click();
    document.querySelector("#photo:not(:has(input[type=file])) [data-testid=source-select] button")?.click(); // leaves its camera, if that is open
    let input;
    while (!(input = document.querySelector("#photo input[type=file]"))) await cifar.pause(50);
    const transfer = new DataTransfer();
    transfer.items.add(file);
    passing = true;
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    passing = false;
    cifar.showAnswerSoon();
  }

  // Passes files to the open tab if it takes many files, otherwise to the tab Classify.
  function takeAnywhere(files) {
    const many = [...document.querySelectorAll(".many")].find((box) => box.checkVisibility());
    if (many) cifar.begin(many, files);
    else take(files);
  }

  document.addEventListener("change", (event) => {
    if (passing || !event.target.matches?.("#photo input[type=file]") || !event.target.files.length) return;
    event.stopImmediatePropagation();
    take([...event.target.files]);
  }, true);
  document.addEventListener("click", ({ target }) => {
    const input = target.closest?.("#photo button")?.querySelector("input[type=file]");
    if (input) input.accept = "image/*,.heic,.heif,.avif,.tif,.tiff"; // for some systems, image/* does not include these endings
    const example = target.closest?.("[data-example]");
    if (!example) return;
    cifar.sendAgain = () => example.click();
    cifar.showProblem(null);
    cifar.showNote(null);
    cifar.showAnswerSoon();
  }, true);

  const isField = (target) => target.matches?.("input:not([type=range], [type=checkbox], [type=file]), textarea");
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => {
      const inside = event.target.closest?.(".many .drop");
      document.body.classList.toggle("dropping", kind === "dragover" && !inside);
      if (isField(event.target) || kind === "dragleave") return;
      event.preventDefault(); // the browser would open the file in place of the page
      if (kind !== "drop") return;
      event.target.dispatchEvent(new DragEvent("dragleave")); // Gradio's component ends its highlight
      event.stopImmediatePropagation();
      const files = [...(event.dataTransfer?.files ?? [])];
      if (!files.length) cifar.showProblem(cifar.text("photo.no_file"));
      else if (inside) cifar.begin(inside.closest(".many"), files);
      else takeAnywhere(files);
    }, true);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length && (isField(event.target) || !event.clipboardData?.types.length)) return;
    event.preventDefault();
    if (files.length) takeAnywhere(files);
    else cifar.showProblem(cifar.text("photo.no_file"));
  });

  // A file that the browser cannot show, such as a HEIC photo, leaves no broken image.
  for (const kind of ["error", "load"])
    document.addEventListener(kind, ({ target }) => {
      if (target.matches?.("#photo img")) target.style.visibility = kind === "error" ? "hidden" : "";
    }, true);
})();
