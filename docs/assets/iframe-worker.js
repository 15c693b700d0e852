// Search in pages that are opened from a folder: browsers start no worker there, so its script runs in a hidden
// frame. The theme looks for a class of this name; mkdocs.yml says where this file is, so that none is fetched.
window.IFrameWorker = class extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.append(this.frame);
    const scope = this.frame.contentWindow;
    scope.document.open(); // without it Firefox replaces the document later
    scope.document.write("<body></body>");
    scope.document.close();
    const load = (source) =>
      new Promise((resolve, reject) => {
        const script = scope.document.createElement("script");
        script.src = source;
        script.onload = resolve;
        script.onerror = reject;
        scope.document.body.append(script);
      });
    scope.postMessage = (data) => {
      const event = new MessageEvent("message", { data: structuredClone(data) });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    };
    scope.importScripts = (...sources) =>
      sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
    this.ready = load(url);
  }

  postMessage(data) {
    const scope = this.frame.contentWindow;
    this.ready.then(() => scope.dispatchEvent(new scope.MessageEvent("message", { data: structuredClone(data) })));
  }

  terminate() {
    this.frame.remove();
  }
};
if (location.protocol === "file:") window.Worker = window.IFrameWorker;
