// What was right, from the buttons under an answer: sent, thanked for and complained of in place.
(() => {
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".feedback button");
    if (!button) return;
    const box = button.closest(".feedback");
    if (button.dataset.right) give(box, button);
    else open(box, button.getAttribute("aria-expanded") !== "true");
  });

  function open(box, wanted) {
    box.querySelector("[aria-expanded]").setAttribute("aria-expanded", String(wanted));
    box.querySelector(".choices").hidden = !wanted;
  }

  async function give(box, button) {
    const said = { request_id: box.dataset.request, label: button.dataset.right };
    const place = box.querySelector("[role=status]");
    let words = cifar.words("error.unreachable");
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(said) };
      const response = await fetch(cifar.address("feedback"), options);
      words = response.ok ? cifar.words("feedback.thanks") : cifar.errorWords(await response.json().catch(() => ({})));
      if (response.ok) for (const other of box.querySelectorAll("[data-right]")) other.setAttribute("aria-pressed", String(other === button));
      place.classList.toggle("problem", !response.ok);
    } catch {
      place.classList.add("problem");
    }
    place.innerHTML = cifar.spans(words);
  }
})();
