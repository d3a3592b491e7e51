// Search on pages that are opened from the file system: browsers start no worker there, so the
// worker's script runs in a hidden frame instead.
if (location.protocol === "file:") {
  const later = (deliver, message) => {
    const data = structuredClone(message);
    setTimeout(() => deliver({ data }));
  };
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const { contentWindow, contentDocument } = this.frame;
      contentWindow.postMessage = (message) => later((event) => this.onmessage?.(event), message);
      const script = contentDocument.createElement("script");
      script.src = new URL(url, location).href;
      this.loaded = new Promise((resolve) => (script.onload = resolve));
      script.onerror = (event) => this.onerror?.(event);
      contentDocument.documentElement.append(script);
    }
    postMessage(message) {
      const { contentWindow } = this.frame;
      this.loaded.then(() => later((event) => contentWindow.onmessage(event), message));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
