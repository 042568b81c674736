// The list of kept conversations: a column on wide screens, a drawer on narrow ones.

import { el, iconButton } from "./dom.js";
import { listChats, removeAllChats, removeChat } from "./store.js";

export class Sidebar {
  /** `hooks`: open(chat), removed(id or null for all), current() -> id. */
  constructor(node, toggle, scrim, hooks) {
    Object.assign(this, { node, toggle, scrim, hooks });
    this.list = node.querySelector("ul");
    this.clear = node.querySelector("[data-action=clear]");
    this.narrow = matchMedia("(max-width: 860px)");
    this.narrow.addEventListener("change", () => this.show(!this.narrow.matches));
    toggle.addEventListener("click", () => this.show(!this.shown));
    scrim.addEventListener("click", () => this.show(false));
    this.clear.addEventListener("click", () => this.clearAll());
    this.clear.addEventListener("blur", () => this.ask(false));
    const closeDrawer = (event) => {
      if (event.key !== "Escape" || scrim.hidden) return;
      event.stopPropagation();
      this.show(false);
      toggle.focus();
    };
    document.addEventListener("keydown", closeDrawer, { capture: true }); // before Esc would stop the answer
    window.addEventListener("storage", () => this.refresh());
    this.show(!this.narrow.matches);
  }

  show(shown) {
    this.shown = shown;
    document.body.classList.toggle("with-sidebar", shown);
    this.toggle.setAttribute("aria-expanded", String(shown));
    this.scrim.hidden = !(shown && this.narrow.matches);
  }

  refresh() {
    const current = this.hooks.current();
    const chats = listChats();
    this.list.replaceChildren(
      ...chats.map((chat) => {
        const title = chat.title || "Untitled";
        const open = el("button", { type: "button", class: "chat-link", title, dir: "auto" }, title);
        if (chat.id === current) open.setAttribute("aria-current", "true");
        open.addEventListener("click", () => {
          if (this.narrow.matches) this.show(false);
          this.hooks.open(chat);
        });
        const remove = iconButton("trash", `Delete “${title}”`, () => {
          this.hooks.removed(chat.id); // first: an answer in flight is saved when it is left
          removeChat(chat.id);
          this.refresh();
          (this.list.querySelector("button") ?? this.toggle).focus();
        });
        return el("li", {}, open, remove);
      }),
    );
    this.clear.hidden = chats.length === 0;
    this.node.querySelector(".empty").hidden = chats.length > 0;
  }

  ask(asking) {
    this.clear.classList.toggle("danger", asking);
    this.clear.querySelector("span").textContent = asking ? "Really delete all?" : "Delete all";
  }

  clearAll() {
    if (!this.clear.classList.contains("danger")) {
      this.ask(true);
      return;
    }
    this.ask(false);
    this.hooks.removed(null);
    removeAllChats();
    this.refresh();
    this.toggle.focus();
  }
}
