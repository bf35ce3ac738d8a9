// Classifies a photo with Node's fetch: as a form, as a form without a file name, as a stream, and more than the server takes.
import { readFile } from "node:fs/promises";

const [address, file] = process.argv.slice(2);
const photo = new Blob([await readFile(file)], { type: "image/jpeg" });
const form = (part, ...name) => { const data = new FormData(); data.append("image", part, ...name); return data; };
const bodies = [form(photo, "猫.jpg"), form(photo), photo.stream(), new Blob([new Uint8Array(21 << 20)])];
for (const body of bodies) {
  const answer = await fetch(`${address}/predict`, { method: "POST", body, duplex: "half" });
  const content = await answer.json();
  console.log(answer.status, content.predicted_class ?? content[0]?.label ?? content.code); // a body without a type is answered as Hugging Face does
}
