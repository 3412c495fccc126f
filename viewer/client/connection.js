// The websocket to the server: messages in and out, and connecting again for ever when it is gone.

export class Connection extends EventTarget {
  constructor() {
    super();
    this.open = false;
    this.wait = 300;
    this.connect();
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { this.open = true; this.wait = 300; this.tell("open"); };
    socket.onmessage = (event) => this.take(event.data);
    socket.onclose = () => {
      if (this.open) this.tell("closed");
      this.open = false;
      setTimeout(() => this.connect(), this.wait);
      this.wait = Math.min(this.wait * 1.5, 3000);
    };
    this.socket = socket;
  }

  take(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      this.tell(message.type, message);
      return;
    }
    const length = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    let at = 4 + length;
    const parts = header.sizes.map((size) => { const part = new Uint8Array(data, at, size); at += size; return part; });
    this.tell("picture", { header, parts });
  }

  tell(name, detail = null) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  on(name, act) { this.addEventListener(name, (event) => act(event.detail)); }

  send(message) {
    if (!this.open) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }
}
