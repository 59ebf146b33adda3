/* The site's search runs in a web worker, which browsers refuse to pages opened from a folder.
   There its script runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #waiting = [];
    #inner = null;
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = frame.contentDocument.createElement("script");
      script.src = new URL(url, document.baseURI).href;
      script.onload = () => {
        this.#inner = inner;
        this.#waiting.forEach((data) => this.postMessage(data));
      };
      script.onerror = () => this.dispatchEvent(new Event("error"));
      frame.contentDocument.body.append(script);
    }
    postMessage(data) {
      if (this.#inner === null) this.#waiting.push(data);
      else this.#inner.dispatchEvent(new this.#inner.MessageEvent("message", { data }));
    }
    terminate() {}
  };
}
