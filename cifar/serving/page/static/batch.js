// The tabs Batch and Compare: one request per photo, with progress, table, counts and downloads. The server stores nothing.
(() => {
  const MAX_CONCURRENT = 4; // requests
  const MAX_WAIT_MS = 15 * 60_000; // for one photo, while the server is away or asks to wait
  const AWAY_SECONDS = 2; // between two tries while the server is away
  const TOP_K = 3;
  const THUMBNAIL = 48; // pixels
  const runs = new WeakMap();

  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => event.target.closest?.(".many .drop")?.classList.toggle("over", kind === "dragover"), true);
  document.addEventListener("change", (event) => {
    const box = event.target.closest?.(".many");
    if (box && event.target.type === "file" && event.target.files.length) {
      begin(box, [...event.target.files]);
      event.target.value = "";
    } else if (box && "only" in event.target.dataset) box.classList.toggle("only", event.target.checked);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".many [data-do]");
    const run = button && runs.get(button.closest(".many"));
    if (run) actions[button.dataset.do](run, button);
  });

  const actions = {
    cancel: (run) => run.stop.abort(),
    retry,
    sort: (run, button) => sort(run, button.dataset.key),
    csv: (run) => save(run, "csv", "text/csv", "\ufeff" + csv(run)),
    json: (run) => save(run, "json", "application/json", JSON.stringify(run.rows.filter(isDone).map(record(run)), null, 1)),
  };
  const isDone = (row) => row.done;

  async function begin(box, files) {
    runs.get(box)?.stop.abort();
    const limit = Object.fromEntries(["files", "bytes", "each", "ratio", "classes"].map((name) => [name, Number(box.dataset[name])]));
    const versions = [...box.querySelectorAll("select:not([data-views])")].map((select) => Number(select.value));
    const run = { box, limit, rows: [], undrawn: [], stop: new AbortController(), kind: box.dataset.many, key: null, descending: false };
    run.versions = versions.length ? versions : [null];
    run.views = box.querySelector("[data-views]").value;
    runs.set(box, run);
    layOut(run);
    for (const file of files) await collect(run, file);
    await answerAll(run, [...run.rows]);
  }
  cifar.begin = begin;

  async function answerAll(run, queue) {
    drawSoon(run);
    const work = async () => {
      while (queue.length && !run.stop.signal.aborted) await answer(run, queue.shift());
    };
    await Promise.all(Array.from({ length: MAX_CONCURRENT }, work));
    if (runs.get(run.box) === run) end(run);
  }

  const unanswered = (run) => run.rows.filter((row) => !row.done || row.error);

  async function retry(run) {
    const rows = unanswered(run);
    for (const row of rows) {
      row.element?.remove();
      Object.assign(row, { done: false, error: null, answers: [] });
    }
    run.stop = new AbortController();
    start(run);
    await answerAll(run, rows);
  }

  async function collect(run, file) {
    const zipped = /\.zip$/i.test(file.name) || /zip/.test(file.type);
    let found = [{ name: file.name, size: file.size, open: async () => file }];
    if (zipped) {
      run.progress.innerHTML = cifar.htmlText("batch.reading", { name: file.name });
      try { found = await cifar.unzip(file, run.limit); } catch (text) { showProblem(run, text); return; }
      if (!found.length) showProblem(run, cifar.text("batch.empty", { name: file.name }));
    }
    for (const row of found) {
      const bytes = run.rows.reduce((sum, { size }) => sum + size, row.size);
      if (run.rows.length >= run.limit.files) return showProblem(run, cifar.text("batch.too_many", { name: row.name, ...run.limit }));
      if (bytes > run.limit.bytes) return showProblem(run, cifar.text("batch.too_large", { name: row.name, megabytes: Math.floor(run.limit.bytes / 1024 ** 2) }));
      run.rows.push({ ...row, answers: [] });
    }
  }

  function showProblem(run, text) {
    run.box.querySelector(".problems").insertAdjacentHTML("beforeend", `<li class="problem" role="alert">${cifar.asHtml(text)}</li>`);
  }

  async function answer(run, row) {
    try {
      const photo = await read(row);
      if (photo.size > run.limit.each) throw cifar.tooLarge(run.limit.each);
      row.thumbnail = await thumbnail(photo);
      for (const version of run.versions) row.answers.push(await ask(run, photo, version));
    } catch (problem) {
      if (run.stop.signal.aborted) return;
      row.error = problem.en ? problem : cifar.text("problem.feedback");
    }
    row.words = row.answers.map(words);
    row.done = true;
    row.element = Object.assign(document.createElement("tr"), { role: "row" }); // with roles, because browsers do not treat the cards of a phone as a table
    row.element.innerHTML = cells(run, row);
    row.element.classList.toggle("same", agrees(row));
    run.undrawn.push(row.element);
    drawSoon(run);
  }

  async function ask(run, photo, version) {
    const address = cifar.address("predict");
    address.searchParams.set("top_k", Math.min(TOP_K, run.limit.classes));
    address.searchParams.set("record", "false");
    address.searchParams.set("views", run.views);
    if (version) address.searchParams.set("version", version);
    const headers = { "Content-Type": "application/octet-stream" };
    const { signal } = run.stop;
    const last = performance.now() + MAX_WAIT_MS;
    for (;;) {
      const response = await fetch(address, { method: "POST", body: photo, headers, signal }).catch(() => null);
      const body = await cifar.bodyOf(response);
      signal.throwIfAborted(); // here, because cancelling can also cut an answer off
      if (response?.ok) return body;
      const away = !response || cifar.isAway(response, body);
      const seconds = Number(response?.headers.get("Retry-After")) || (away ? AWAY_SECONDS : 0);
      if (!seconds || performance.now() > last) throw { ...cifar.errorText(body), code: body.code ?? null };
      run.progress.innerHTML = cifar.htmlText(away ? "batch.away" : "batch.waiting", { seconds });
      await cifar.pause(seconds * 1000, signal);
    }
  }

  // Reads a photo before it is sent: if the file was deleted, the request would fail as if the server did not answer.
  async function read(row) {
    const file = await row.open();
    try { return new Blob([await file.arrayBuffer()], { type: file.type }); } catch { throw cifar.text("batch.unreadable"); }
  }

  async function thumbnail(photo) {
    try {
      const bitmap = await createImageBitmap(photo, { resizeHeight: THUMBNAIL, resizeQuality: "low" });
      const canvas = Object.assign(document.createElement("canvas"), { width: Math.min(bitmap.width, 2 * THUMBNAIL), height: THUMBNAIL });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
      return canvas.toDataURL("image/jpeg", 0.7);
    } catch { return null; } // a format that the browser cannot show
  }

  // Drawing

  const columns = (run) => run.kind === "compare"
    ? [["name", cifar.htmlText("batch.name")], ...run.versions.map((version, at) => [`label${at}`, cifar.htmlText("compare.version", { number: version })]), ["verdict", cifar.htmlText("compare.verdict")]]
    : [["name", cifar.htmlText("batch.name")], ["label0", cifar.htmlText("batch.answer")], ["score0", cifar.htmlText("batch.score")]];

  function layOut(run) {
    const head = columns(run).map(([key, text]) => `<th scope="col" role="columnheader" aria-sort="none"><button type="button" data-do="sort" data-key="${key}">${text}</button></th>`).join("");
    const only = run.kind === "compare" ? `<label class="choice"><input type="checkbox" data-only>${cifar.htmlText("compare.only")}</label>` : "";
    run.box.classList.remove("only");
    run.box.querySelector(".problems").innerHTML = "";
    run.box.querySelector(".report").innerHTML = `<p class="summary" role="status"></p>
      <div class="downloads"><button type="button" class="plain" data-do="retry" hidden>${cifar.htmlText("batch.retry")}</button>
      <button type="button" class="plain" data-do="csv">${cifar.htmlText("batch.csv")}</button>
      <button type="button" class="plain" data-do="json">${cifar.htmlText("batch.json")}</button>${only}</div>
      <section><h2 class="part" id="${run.kind}-counts">${cifar.htmlText("batch.counts")}</h2><div class="counts"></div></section>
      <div class="wide" tabindex="0" role="region" aria-labelledby="${run.kind}-rows"><table class="rows" role="table"><caption id="${run.kind}-rows">${cifar.htmlText("batch.table")}</caption>
      <thead role="rowgroup"><tr role="row"><th scope="col" role="columnheader">${cifar.htmlText("batch.thumbnail")}</th>${head}</tr></thead><tbody role="rowgroup"></tbody></table></div>`;
    run.body = run.box.querySelector("tbody");
    run.progress = run.box.querySelector(".progress");
    start(run);
  }

  function start(run) {
    run.box.querySelector(".run").hidden = run.box.querySelector("[data-do=cancel]").hidden = false;
    run.box.querySelector("[data-do=retry]").hidden = true;
    run.box.querySelector(".summary").innerHTML = "";
  }

  // Returns an answer in words, with its grade and its label.
  function words({ grade, predicted_class: name }) {
    const text = grade === "none" ? cifar.text("grade.none") : grade === "unsure" ? cifar.text("grade.unsure", { first: cifar.withArticle(name) }) : cifar.className(name);
    return { ...text, grade, label: grade === "none" ? null : name };
  }

  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const agrees = ({ words: [first, second] }) => Boolean(second) && first.label === second.label;
  const verdict = (row) => !agrees(row) ? "compare.disagree" : row.words[0].grade === row.words[1].grade ? "compare.agree" : "compare.agree_unsure";
  // A long name may be broken before its ending, but not within it.
  const nameHtml = (name) => {
    const [, start, ending] = /^(.*?)(\.[^./\s]{1,8})?$/s.exec(name);
    const escaped = (text) => cifar.asHtml({ en: text, zh: text });
    return ending ? `${escaped(start)}<wbr><span class="ending">${escaped(ending)}</span>` : escaped(name);
  };

  function cells(run, row) {
    const picture = row.thumbnail ? `<img src="${row.thumbnail}" alt="">` : `<small>${cifar.htmlText("batch.no_preview")}</small>`;
    const start = `<td role="cell">${picture}</td><th scope="row" role="rowheader">${nameHtml(row.name)}</th>`;
    if (row.error) return `${start}<td role="cell" colspan="${columns(run).length - 1}" class="failed">${cifar.asHtml(row.error)}</td>`;
    if (run.kind !== "compare") {
      const [answer] = row.answers;
      return `${start}<td role="cell">${cifar.asHtml(row.words[0])}</td><td role="cell" class="number">${row.words[0].label === null ? "–" : percent(answer.confidence)}</td>`;
    }
    const ranked = ({ label: name, score }) => `<li>${cifar.asHtml(cifar.className(name))} ${percent(score)}</li>`;
    const answers = row.answers.map((answer, at) => `<td role="cell"><small class="of">${cifar.htmlText("compare.version", { number: run.versions[at] })}</small><b>${cifar.asHtml(row.words[at])}</b><ol>${answer.top_k.map(ranked).join("")}</ol></td>`);
    return `${start}${answers.join("")}<td role="cell">${cifar.htmlText(verdict(row))}</td>`;
  }

  function progressHtml(key, run, done) {
    const failed = done.filter((row) => row.error).length;
    return cifar.htmlText(key, { done: done.length, all: run.rows.length }) + (failed ? ` ${cifar.htmlText("batch.failed", { failed })}` : "");
  }

  function drawSoon(run) {
    run.drawing ??= setTimeout(() => draw(run), 250);
  }

  function draw(run) {
    clearTimeout(run.drawing);
    run.drawing = null;
    if (runs.get(run.box) !== run) return; // another batch has replaced this one
    run.body.append(...run.undrawn.splice(0)); // all together, because browsers lay the table out again after each change
    const done = run.rows.filter(isDone);
    const bar = run.box.querySelector("progress");
    [bar.max, bar.value] = [Math.max(1, run.rows.length), done.length];
    run.progress.innerHTML = progressHtml("batch.done", run, done);
    run.box.querySelector(".counts").innerHTML = counts(done, run);
  }

  function counts(done, run) {
    const numbers = new Map();
    for (const row of done) {
      const shown = row.error ? `<span class="error">${cifar.htmlText("batch.error")}</span>` : cifar.asHtml(row.words[0]);
      numbers.set(shown, (numbers.get(shown) ?? 0) + 1);
    }
    const bars = [...numbers].sort((a, b) => b[1] - a[1]).map(([name, number]) =>
      `<li style="--share:${number / done.length}"><span class="name">${name}</span><span class="score">${number}</span><span class="track"></span></li>`);
    return `<ol class="bars">${bars.join("")}</ol>`;
  }

  function end(run) {
    const done = run.rows.filter(isDone);
    run.box.querySelector("[data-do=cancel]").hidden = true;
    run.box.querySelector("[data-do=retry]").hidden = !unanswered(run).length;
    draw(run); // the summary counts the rows that wait to be drawn
    run.progress.innerHTML = "";
    const both = done.filter(({ error }) => !error);
    const summary = cifar.htmlText("compare.summary", { different: both.filter((row) => !agrees(row)).length, all: both.length });
    run.box.querySelector(".summary").innerHTML = progressHtml(run.stop.signal.aborted ? "batch.cancelled" : "batch.done", run, done) + (run.kind === "compare" ? ` ${summary}` : "");
    if (!run.key) for (const row of done.sort((a, b) => run.rows.indexOf(a) - run.rows.indexOf(b))) run.body.append(row.element);
  }

  const values = {
    name: (row) => row.name, verdict: (row) => Number(agrees(row)),
    label0: (row) => row.words[0]?.en, label1: (row) => row.words[1]?.en,
    score0: (row) => row.answers[0]?.confidence,
  };

  function sort(run, key) {
    run.descending = run.key === key ? !run.descending : key === "score0";
    run.key = key;
    const of = (row) => (row.error ? undefined : values[key](row));
    const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    const rows = run.rows.filter(isDone).sort((a, b) => { // failed rows stay at the end
      const [first, second] = [of(a), of(b)];
      if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
      return order(first, second) * (run.descending ? -1 : 1);
    });
    for (const row of rows) run.body.append(row.element);
    for (const button of run.box.querySelectorAll("[data-key]"))
      button.parentElement.setAttribute("aria-sort", button.dataset.key !== key ? "none" : run.descending ? "descending" : "ascending");
  }

  // Downloads, in English, for programs

  const exported = (answer, { en, grade, label }) => ({
    answer: en, grade, label, score: label === null ? null : answer.top_k[0].score, top_k: answer.top_k,
    in_distribution: answer.in_distribution ?? null, ood_score: answer.ood_score ?? null, version: answer.model.version,
  });
  const record = (run) => ({ name, answers, words, error }) => ({
    name,
    ...(run.kind === "compare" ? { agree: error ? null : agrees({ words }), first: answers[0] ? exported(answers[0], words[0]) : null, second: answers[1] ? exported(answers[1], words[1]) : null }
      : error ? {} : exported(answers[0], words[0])),
    code: error?.code ?? null,
    error: error?.en ?? null,
  });

  function csv(run) {
    const fields = ["answer", "grade", "label", "score", "in_distribution", "ood_score", "version"];
    const names = ["name", ...(run.kind === "compare" ? ["agree", ...fields.map((name) => `first.${name}`), ...fields.map((name) => `second.${name}`)] : fields), "code", "error"];
    const value = (data, name) => name.split(".").reduce((inner, part) => inner?.[part], data) ?? "";
    // a spreadsheet would execute a name such as "=1+1.jpg" as a formula; numbers stay numbers
    const cell = (data) => typeof data !== "string" ? String(data) : `"${data.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
    const lines = run.rows.filter(isDone).map(record(run)).map((data) => names.map((name) => cell(value(data, name))).join(","));
    return [names.join(","), ...lines].join("\r\n") + "\r\n";
  }

  function save(run, ending, type, text) {
    const address = URL.createObjectURL(new Blob([text], { type }));
    Object.assign(document.createElement("a"), { href: address, download: `cifar-${run.kind}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }
})();
