// The server's API as the chat needs it, and its errors as sentences.

import { readEvents } from "./sse.js";

/** What went wrong, readable. `kind`: "network" (nobody answers), "http", "stream" (told inside the stream), "cut". */
export class ApiError extends Error {
  constructor(kind, message, { status = 0, code = "", param = "", retryAfter = "" } = {}) {
    super(message);
    Object.assign(this, { kind, status, code, param, retryAfter });
  }

  /** The facts behind the sentence, for whoever has to mend it. */
  get details() {
    const facts = [this.status && `HTTP ${this.status}`, this.code, this.param && `field: ${this.param}`];
    if (this.retryAfter) facts.push(`try again in ${this.retryAfter} s`);
    return facts.filter(Boolean).join(" · ");
  }
}

function headers(apiKey) {
  return apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
}

function fromErrorObject(kind, error, extra = {}) {
  const text = typeof error === "string" ? error : error?.message;
  const facts = { code: String(error?.code ?? error?.type ?? ""), param: String(error?.param ?? ""), ...extra };
  return new ApiError(kind, text || "The server reported an error without a message.", facts);
}

async function httpError(response) {
  const extra = { status: response.status, retryAfter: response.headers.get("retry-after") ?? "" };
  let body = null;
  try {
    body = await response.json();
  } catch {
    return new ApiError("http", `The server answered “${response.status} ${response.statusText}”.`, extra);
  }
  return fromErrorObject("http", body?.error ?? body?.detail ?? body, extra);
}

/** Names of the served models. Throws ApiError. */
export async function listModels(apiKey) {
  let response;
  try {
    response = await fetch("/v1/models", { headers: headers(apiKey), cache: "no-store" });
  } catch {
    throw new ApiError("network", "The server is not answering.");
  }
  if (!response.ok) throw await httpError(response);
  const { data } = await response.json();
  return (Array.isArray(data) ? data : []).map((model) => String(model.id));
}

/**
 * Stream one answer. Yields {type: "reasoning" | "content", text}, {type: "finish", reason} and {type: "usage", usage}.
 * Throws ApiError, or the signal's AbortError.
 */
export async function* streamChat(body, { apiKey, signal }) {
  let response;
  try {
    response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers(apiKey) },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("network", "The server is not answering.");
  }
  if (!response.ok) throw await httpError(response);

  let finished = false;
  try {
    for await (const { event, data } of readEvents(response.body)) {
      if (data === "[DONE]") return;
      let chunk;
      try {
        chunk = JSON.parse(data);
      } catch {
        throw new ApiError("stream", "The server sent something that is no JSON.", { code: data.slice(0, 80) });
      }
      if (event === "error" || chunk?.error) throw fromErrorObject("stream", chunk?.error ?? chunk);
      const choice = chunk?.choices?.[0];
      if (choice?.delta?.reasoning_content) yield { type: "reasoning", text: choice.delta.reasoning_content };
      if (choice?.delta?.content) yield { type: "content", text: choice.delta.content };
      if (choice?.finish_reason) {
        finished = true;
        yield { type: "finish", reason: choice.finish_reason };
      }
      if (chunk?.usage) yield { type: "usage", usage: chunk.usage };
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError("cut", "The connection broke before the answer was complete.");
  }
  if (!finished) throw new ApiError("cut", "The answer ended before it was complete.");
}
