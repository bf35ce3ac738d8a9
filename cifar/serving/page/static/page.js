// Shared by the whole page: the language, texts for the other scripts, error messages, and a few small helpers.
(() => {
  const page = (window.cifar = {});

  // Language: the visitor's choice on an earlier visit, else the first supported language of the browser.
  const saved = () => { try { return localStorage.getItem("cifar-language"); } catch { return null; } };
  const supported = (tag) => (/^zh\b/i.test(tag) ? "zh-CN" : /^en\b/i.test(tag) ? "en" : null);
  let language = supported(saved() ?? "") ?? navigator.languages.map(supported).find(Boolean) ?? "en";

  page.setLanguage = async (wanted = language) => {
    language = wanted;
    // Gradio has no public function to change the language of its own components.
    const core = performance.getEntriesByType("resource").find(({ name }) => /\/assets\/core-[^/]*\.js$/.test(name));
    try { (await import(core.name)).changeLocale(wanted); } catch { /* Gradio's components keep the browser's language */ }
    document.documentElement.lang = wanted;
    translateTabs();
    for (const button of document.querySelectorAll("[data-language]"))
      button.setAttribute("aria-pressed", String(button.dataset.language === wanted));
  };

  // Gradio translates the names of tabs only once, so this replaces the text of Gradio's nodes, each time Gradio draws them.
  function translateTabs() {
    const tabs = document.querySelector("#tabs .tab-wrapper");
    if (!tabs) return void setTimeout(translateTabs, 50); // Gradio has not drawn the tabs yet
    const names = Object.entries(dictionary().en).filter(([key]) => key.startsWith("tab."));
    const walk = document.createTreeWalker(tabs, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const shown = walk.currentNode.data.trim();
      const [key] = names.find(([name, english]) => shown && (shown === english || shown === dictionary()["zh-CN"][name])) ?? [];
      const wanted = key && dictionary()[language][key];
      if (wanted && wanted !== shown) walk.currentNode.data = wanted;
    }
    if (!tabs.dataset.watched) new MutationObserver(translateTabs).observe(tabs, { childList: true, subtree: true, characterData: true });
    tabs.dataset.watched = "yes";
  }

  function choose(wanted) {
    try { localStorage.setItem("cifar-language", wanted); } catch { /* a frame without storage: for this visit only */ }
    page.setLanguage(wanted);
  }

  // Texts, as in texts.py: {en, zh}. The page contains both languages, and CSS shows one.
  const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const dictionary = () => window.gradio_config.i18n_translations;
  page.text = (key, values = {}) => {
    const fill = (template, field) => template.replace(/\{(\w+)\}/g, (_, name) => values[name]?.[field] ?? values[name] ?? "");
    return { en: fill(dictionary().en[key] ?? "", "en"), zh: fill(dictionary()["zh-CN"][key] ?? "", "zh") };
  };
  page.asHtml = ({ en, zh }) => en === zh ? escaped(en)
    : `<span class="en" lang="en">${escaped(en)}</span><span class="zh" lang="zh-CN">${escaped(zh)}</span>`;
  page.htmlText = (key, values) => page.asHtml(page.text(key, values));
  page.className = (name) => dictionary().en[`class.${name}`] ? page.text(`class.${name}`) : { en: name, zh: name };
  // The text for the JSON body of an error response; without a message in it, the server did not answer.
  page.errorText = ({ code, error }) => {
    if (!error) return page.text("problem.unreachable");
    const key = `error.${code}`;
    return page.text(dictionary().en[key] ? key : "error.internal_error", { details: error });
  };

  // Returns the URL of a path of this server, also behind a proxy that serves the page under a prefix.
  page.address = (path) => new URL(`${new URL(window.gradio_config.root, location.href).pathname.replace(/\/$/, "")}/${path}`, location.origin);

  // Errors of Gradio's calls are shown at the top of the page instead of in Gradio's toasts, which disappear.
  function showProblem(text) {
    const element = document.getElementById("page-problem");
    if (!element) return;
    element.innerHTML = text ? page.asHtml(text) : "";
    element.hidden = !text;
  }
  const plainFetch = window.fetch;
  window.fetch = async (resource, options) => {
    const ofPage = /\/gradio_api\/(run|upload)\b/.test(String(resource?.url ?? resource));
    try {
      const response = await plainFetch(resource, options);
      if (ofPage) showProblem(response.ok ? null : page.errorText(await response.clone().json().catch(() => ({}))));
      return response;
    } catch (error) {
      if (ofPage && error.name !== "AbortError") showProblem(page.text("problem.unreachable"));
      throw error;
    }
  };

  // A file over the size limit is not sent. Gradio's front end would ignore a file without an image type, and say nothing.
  function refuse(event, files) {
    if (!event.target.closest?.("#photo")) return;
    const limit = window.gradio_config?.max_file_size || Infinity;
    const [file] = [...(files ?? [])].filter(({ size, type }) => size > limit || !type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const tooLarge = { code: "body_too_large", error: page.text("batch.file_too_large", { each: Math.floor(limit / 1024 ** 2) }).en };
    showProblem(file.size > limit ? page.errorText(tooLarge) : page.text("photo.no_image", { name: file.name }));
  }
  document.addEventListener("change", (event) => refuse(event, event.target.files), true);
  document.addEventListener("drop", (event) => refuse(event, event.dataTransfer?.files), true);

  // A file that the browser cannot show, such as a HEIC photo, leaves no broken image.
  for (const kind of ["error", "load"])
    document.addEventListener(kind, ({ target }) => {
      if (target.matches?.("#photo img")) target.style.visibility = kind === "error" ? "hidden" : "";
    }, true);

  async function copy(button) {
    const text = button.closest(".snippet").querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // browsers have no clipboard without https
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
