// Shared by the whole page: the language, texts for the other scripts, and a few small helpers.
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
  page.withArticle = (name) => {
    const { en, zh } = page.className(name);
    return { en: `${/^[aeiou]/i.test(en) ? "an" : "a"} ${en}`, zh };
  };
  // The text for the JSON body of an error response; without a message in it, the server did not answer.
  page.errorText = ({ code, error }) => {
    if (!error) return page.text("problem.feedback");
    const key = `error.${code}`;
    return page.text(dictionary().en[key] ? key : "error.internal_error", { details: error });
  };

  // The JSON body of a response; empty if there is no response or no JSON.
  page.bodyOf = async (response) => await response?.json().catch(() => ({})) ?? {};
  page.tooLarge = (limit) => page.text("batch.file_too_large", { each: Math.floor(limit / 1024 ** 2) });

  // Returns the URL of a path of this server, also behind a proxy that serves the page under a prefix.
  page.address = (path) => new URL(`${new URL(window.gradio_config.root, location.href).pathname.replace(/\/$/, "")}/${path}`, location.origin);

  // Shows a text at the top of the page, or hides it. A problem stays until the next answer, a note until the next photo.
  const show = (id) => (text) => {
    const element = document.getElementById(id);
    if (!element) return;
    element.innerHTML = text ? page.asHtml(text) : "";
    element.hidden = !text;
    if (text) element.scrollIntoView({ block: "nearest" });
  };
  page.showProblem = show("page-problem");
  page.showNote = show("page-note");

  // Scrolls to the next answer if it appears outside the window, as on a phone.
  let answerWanted = false;
  page.showAnswerSoon = () => {
    answerWanted = true;
    const answer = document.getElementById("answer");
    if (answer.dataset.watched) return;
    answer.dataset.watched = "yes";
    new MutationObserver(() => {
      const shown = answer.querySelector(".answer, .problem");
      if (!shown || !answerWanted) return;
      answerWanted = false;
      requestAnimationFrame(() => {
        const { top } = shown.getBoundingClientRect();
        if (top < 0 || top + 160 > innerHeight) shown.scrollIntoView({ block: innerHeight < 720 ? "start" : "center" });
      });
    }).observe(answer, { childList: true, subtree: true });
  };

  // A file that the browser cannot show, such as HEIC in most of them, would leave an empty frame.
  for (const kind of ["load", "error"]) document.addEventListener(kind, ({ target }) => {
    if (target.matches?.("#photo .image-frame img")) target.closest(".image-frame").toggleAttribute("data-unshown", kind === "error");
  }, true);

  // Gradio's slider sends its value when a mouse button is released; keys get the same effect.
  document.addEventListener("keyup", ({ target, key }) => {
    if (target.matches?.("#top-k input[type=range]") && /^(Arrow|Home|End|Page)/.test(key)) target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });

  // Returns why the camera does not start. Gradio would show it in a toast, and this page hides toasts.
  page.cameraText = (error) => page.text({ NotFoundError: "camera.missing", OverconstrainedError: "camera.missing", NotAllowedError: "camera.denied" }[error?.name]
    ?? (navigator.mediaDevices ? "camera.busy" : "camera.insecure"));
  const media = navigator.mediaDevices, openCamera = media?.getUserMedia.bind(media);
  if (media) media.getUserMedia = async (wanted) => {
    const ofGradio = !page.startsLive;
    try { return await openCamera(wanted); } catch (error) {
      if (!ofGradio) throw error; // live.js shows it beside its button
      page.showProblem(page.cameraText(error));
      return new Promise(() => {}); // Gradio would not catch the error
    }
  };
  else document.addEventListener("click", ({ target }) => {
    if (target.closest?.("#photo [data-testid=source-select] button:nth-of-type(2)")) page.showProblem(page.cameraText());
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
