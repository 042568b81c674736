// Server-sent events over fetch, whatever way the bytes are cut: inside a character, a line, or between "\r" and "\n".

/** Turn chunks of text into events: `push(text)` gives the events that are complete. */
export class EventParser {
  constructor() {
    this.rest = "";
    this.event = "";
    this.data = [];
  }

  push(text) {
    const events = [];
    let buffer = this.rest + text;
    // a final "\r" may be the first half of "\r\n"
    const held = buffer.endsWith("\r") ? "\r" : "";
    if (held) buffer = buffer.slice(0, -1);
    const lines = buffer.split(/\r\n|\n|\r/);
    this.rest = lines.pop() + held;
    for (const line of lines) {
      if (line === "") {
        if (this.data.length) events.push({ event: this.event || "message", data: this.data.join("\n") });
        [this.event, this.data] = ["", []];
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue; // a comment, sent to keep the connection alive
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "data") this.data.push(value);
      else if (field === "event") this.event = value;
    }
    return events;
  }
}

/** The events of a fetch response's body. */
export async function* readEvents(body) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // leaving the loop early must close the connection; it may be closed already
  }
}
