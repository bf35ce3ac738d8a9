// Reads zip files. Each file in them is unpacked when it is needed, by the browser's own decompressor.
(() => {
  const END = 0x06054b50, ENTRY = 0x02014b50, LOCAL = 0x04034b50;
  const HIDDEN = /(^|\/)(\.(?!\.?\/)|__MACOSX\/|(thumbs\.db|desktop\.ini|icon\r)$)/i; // as in archives.py

  // Returns [{name, size, open}]; `open` returns the file as a Blob. Throws a text, as `cifar.text` returns it.
  cifar.unzip = async (file, { ratio, each }) => {
    const entries = await directory(file).catch(() => { throw cifar.text("batch.not_a_zip", { name: file.name }); });
    return entries
      .filter(({ name }) => !name.endsWith("/") && !HIDDEN.test(name))
      .map((entry) => ({ name: entry.name, size: entry.size, open: () => unpack(file, entry, { ratio, each }) }));
  };

  async function directory(file) {
    const tail = new DataView(await file.slice(Math.max(0, file.size - 65_557)).arrayBuffer());
    let at = tail.byteLength - 22;
    while (tail.getUint32(at, true) !== END) at -= 1; // a RangeError before the start of the file means that it is no zip
    const count = tail.getUint16(at + 10, true);
    const start = tail.getUint32(at + 16, true);
    const view = new DataView(await file.slice(start, start + tail.getUint32(at + 12, true)).arrayBuffer());
    const entries = [];
    for (let place = 0; entries.length < count; ) {
      if (view.getUint32(place, true) !== ENTRY) throw new Error("no entry");
      const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(place + offset, true));
      entries.push({
        encrypted: view.getUint16(place + 8, true) & 1,
        method: view.getUint16(place + 10, true),
        packed: view.getUint32(place + 20, true),
        size: view.getUint32(place + 24, true),
        start: view.getUint32(place + 42, true),
        name: decoded(new Uint8Array(view.buffer, place + 46, name)),
      });
      place += 46 + name + extra + comment;
    }
    return entries;
  }

  // The same rule as in archives.py: UTF-8 if the bytes are UTF-8, whatever the flag says, otherwise what Chinese Windows writes.
  function decoded(bytes) {
    try { return new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { return new TextDecoder("gb18030").decode(bytes); }
  }

  async function unpack(file, entry, { ratio, each }) {
    if (entry.encrypted || (entry.method !== 0 && entry.method !== 8)) throw cifar.text("batch.zip_method");
    const head = new DataView(await file.slice(entry.start, entry.start + 30).arrayBuffer());
    if (head.byteLength < 30 || head.getUint32(0, true) !== LOCAL) throw cifar.text("batch.zip_method");
    const from = entry.start + 30 + head.getUint16(26, true) + head.getUint16(28, true);
    const packed = file.slice(from, from + entry.packed);
    if (entry.method === 0) return packed;
    // the directory may state wrong sizes, so count the bytes that arrive
    const reader = packed.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
    const parts = [];
    let size = 0;
    for (;;) {
      const { done, value } = await reader.read().catch(() => { throw cifar.text("batch.zip_method"); });
      if (done) return new Blob(parts);
      size += value.length;
      if (size > each || size > ratio * entry.packed) {
        reader.cancel();
        throw size > each ? cifar.tooLarge(each) : cifar.text("batch.zip_ratio", { ratio });
      }
      parts.push(value);
    }
  }
})();
