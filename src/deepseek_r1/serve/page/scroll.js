// Keeps the newest text in view while it grows, until the reader scrolls up; a button leads back.

const NEAR = 24; // pixels from the end that still count as the end

export class Follower {
  constructor(box, button) {
    Object.assign(this, { box, button, following: true, top: 0 });
    box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    box.addEventListener("wheel", (event) => event.deltaY < 0 && this.overflows && this.release(), { passive: true });
    button.addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.grew()).observe(box);
  }

  get atEnd() {
    return this.box.scrollHeight - this.box.clientHeight - this.box.scrollTop <= NEAR;
  }

  get overflows() {
    return this.box.scrollHeight > this.box.clientHeight + NEAR;
  }

  scrolled() {
    const up = this.box.scrollTop < this.top - 1;
    this.top = this.box.scrollTop;
    if (this.atEnd) this.following = true;
    else if (up) this.following = false;
    this.button.hidden = this.following || !this.overflows;
  }

  release() {
    this.following = false;
    this.button.hidden = this.atEnd;
  }

  /** Go to the end and stay there. */
  follow() {
    this.following = true;
    this.grew();
  }

  /** The content has grown. */
  grew() {
    if (this.following) {
      this.box.scrollTop = this.box.scrollHeight;
      this.top = this.box.scrollTop;
    }
    this.button.hidden = this.following || this.atEnd;
  }
}
