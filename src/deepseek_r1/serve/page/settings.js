// The settings panel. An empty field means the server's default: the field is then not sent at all.

import { readChoice, readKey, writeChoice, writeKey } from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "max_thinking_tokens", "seed"];

export class Settings {
  constructor(dialog) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    const stored = readChoice("settings") ?? {};
    for (const name of [...NUMBERS, "system_prompt"]) {
      if (stored[name] !== undefined) this.form.elements[name].value = String(stored[name]);
    }
    this.form.elements.api_key.value = readKey();
    const theme = readChoice("theme");
    this.form.elements.theme.value = theme === "light" || theme === "dark" ? theme : "system";

    this.form.addEventListener("input", (event) => this.changed(event.target));
    dialog.querySelector("[data-action=reset]").addEventListener("click", () => this.reset());
    dialog.addEventListener("click", (event) => event.target === dialog && this.close()); // a click on the backdrop
    this.form.addEventListener("submit", (event) => {
      event.preventDefault(); // a field that is not valid keeps its message and is not sent
      this.close();
    });
    window.addEventListener(
      "storage",
      () => this.form.elements.theme.value === (readChoice("theme") ?? "system") || this.showTheme(),
    );
  }

  open() {
    this.dialog.showModal();
  }

  close() {
    this.dialog.close();
  }

  changed(field) {
    if (field.name === "theme") {
      this.setTheme(field.value);
    } else if (field.name === "api_key") {
      writeKey(field.value.trim());
      this.dialog.dispatchEvent(new Event("keychange"));
    } else {
      const error = this.dialog.querySelector(`#${field.id}-error`);
      if (error) error.textContent = field.validationMessage;
      field.setAttribute("aria-invalid", String(!field.validity.valid));
      writeChoice("settings", this.values());
    }
    this.dialog.dispatchEvent(new Event("settingschange"));
  }

  /** Only fields that are filled in, and valid. */
  values() {
    const values = {};
    for (const name of NUMBERS) {
      const field = this.form.elements[name];
      if (field.value !== "" && field.validity.valid) values[name] = field.valueAsNumber;
    }
    const prompt = this.form.elements.system_prompt.value;
    if (prompt.trim()) values.system_prompt = prompt;
    return values;
  }

  /** What a request needs: {request, systemPrompt, apiKey}. */
  forRequest() {
    const { system_prompt: systemPrompt = "", ...request } = this.values();
    return { request, systemPrompt, apiKey: this.apiKey };
  }

  get apiKey() {
    return this.form.elements.api_key.value.trim();
  }

  /** How many settings differ from the server's defaults. */
  get count() {
    return Object.keys(this.values()).length;
  }

  setTheme(theme) {
    writeChoice("theme", theme);
    this.showTheme();
    window.dispatchEvent(new Event("themechange"));
  }

  showTheme() {
    this.form.elements.theme.value = readChoice("theme") ?? "system";
  }

  reset() {
    for (const name of [...NUMBERS, "system_prompt"]) {
      this.form.elements[name].value = "";
      this.changed(this.form.elements[name]);
    }
    this.form.elements.system_prompt.focus();
  }
}
