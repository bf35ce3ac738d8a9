// What the whole page needs: its language, texts for the other scripts, errors in place, and a few small helpers.
(() => {
  const page = (window.cifar = {});

  // Language: the one chosen here before, else the browser's first that we have.
  const kept = () => { try { return localStorage.getItem("cifar-language"); } catch { return null; } };
  const ours = (name) => (/^zh\b/i.test(name) ? "zh-CN" : /^en\b/i.test(name) ? "en" : null);
  let language = ours(kept() ?? "") ?? navigator.languages.map(ours).find(Boolean) ?? "en";

  page.speak = async (wanted = language) => {
    language = wanted;
    const core = performance.getEntriesByType("resource").find(({ name }) => /\/assets\/core-[^/]*\.js$/.test(name));
    try { (await import(core.name)).changeLocale(wanted); } catch { /* Gradio's own words stay in the browser's language */ }
    document.documentElement.lang = wanted;
    nameTabs();
    for (const button of document.querySelectorAll("[data-language]"))
      button.setAttribute("aria-pressed", String(button.dataset.language === wanted));
  };

  // Gradio does not translate again the names of tabs that were not opened yet. The text nodes stay its own.
  function nameTabs() {
    const place = document.querySelector("#tabs .tab-wrapper");
    if (!place) return void setTimeout(nameTabs, 50); // this script may be earlier than the tabs
    const texts = Object.entries(dictionary().en).filter(([key]) => key.startsWith("tab."));
    const walk = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const said = walk.currentNode.data.trim();
      const [key] = texts.find(([name, english]) => said && (said === english || said === dictionary()["zh-CN"][name])) ?? [];
      const wanted = key && dictionary()[language][key];
      if (wanted && wanted !== said) walk.currentNode.data = wanted;
    }
    if (!place.dataset.watched) new MutationObserver(nameTabs).observe(place, { childList: true, subtree: true, characterData: true });
    place.dataset.watched = "yes";
  }

  function choose(wanted) {
    try { localStorage.setItem("cifar-language", wanted); } catch { /* a frame without storage: for this visit only */ }
    page.speak(wanted);
  }

  // Texts. Both languages are in the page; CSS shows one.
  const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const dictionary = () => window.gradio_config.i18n_translations;
  page.words = (key, values = {}) => {
    const fill = (text, field) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]?.[field] ?? values[name] ?? "");
    return { en: fill(dictionary().en[key] ?? "", "en"), zh: fill(dictionary()["zh-CN"][key] ?? "", "zh") };
  };
  page.spans = ({ en, zh }) => en === zh ? escaped(en)
    : `<span class="en" lang="en">${escaped(en)}</span><span class="zh" lang="zh-CN">${escaped(zh)}</span>`;
  page.say = (key, values) => page.spans(page.words(key, values));
  page.className = (name) => dictionary().en[`class.${name}`] ? page.words(`class.${name}`) : { en: name, zh: name };
  page.errorWords = ({ code, error }) => error
    ? page.words("error", { details: error, sentence: page.words(`error.${code}`).zh || page.words("error.internal_error").zh })
    : page.words("error.unreachable");

  // Addresses, also behind a proxy that puts the page under a path.
  page.address = (path) => new URL(`${new URL(window.gradio_config.root, location.href).pathname.replace(/\/$/, "")}/${path}`, location.origin);

  // Errors of the page's own calls are shown here in place of Gradio's passing notes.
  function problem(words) {
    const place = document.getElementById("page-problem");
    if (!place) return;
    place.innerHTML = words ? page.spans(words) : "";
    place.hidden = !words;
  }
  const plainFetch = window.fetch;
  window.fetch = async (resource, options) => {
    const ofPage = /\/gradio_api\/(run|upload)\b/.test(String(resource?.url ?? resource));
    try {
      const response = await plainFetch(resource, options);
      if (ofPage) problem(response.ok ? null : page.errorWords(await response.clone().json().catch(() => ({}))));
      return response;
    } catch (error) {
      if (ofPage && error.name !== "AbortError") problem(page.words("error.unreachable"));
      throw error;
    }
  };

  // What the server would refuse for its size is not sent; what Gradio's front end takes for no image, it drops without a word.
  function refuse(event, files) {
    if (!event.target.closest?.("#photo")) return;
    const most = window.gradio_config?.max_file_size || Infinity;
    const [file] = [...(files ?? [])].filter(({ size, type }) => size > most || !type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const tooLarge = { code: "body_too_large", error: page.words("batch.file_too_large", { each: Math.floor(most / 1024 ** 2) }).en };
    problem(file.size > most ? page.errorWords(tooLarge) : page.words("photo.no_image", { name: file.name }));
  }
  document.addEventListener("change", (event) => refuse(event, event.target.files), true);
  document.addEventListener("drop", (event) => refuse(event, event.dataTransfer?.files), true);

  // A file that the browser cannot show, a HEIC photo or none at all, leaves no broken frame.
  for (const kind of ["error", "load"])
    document.addEventListener(kind, ({ target }) => {
      if (target.matches?.("#photo img")) target.style.visibility = kind === "error" ? "hidden" : "";
    }, true);

  async function copy(button) {
    const text = button.closest(".snippet").querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // no clipboard outside https
      const field = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 2000);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-language], [data-copy]");
    if (button?.dataset.language) choose(button.dataset.language);
    else if (button) copy(button);
  });
})();
