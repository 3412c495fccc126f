// Splats that this browser draws itself: fetched once for a scene, unpacked, sorted in a worker and drawn with WebGL 2 by
// the code that exported pages carry (splats.js).

import { SplatRenderer, Sorter, cameraOfPose, inflated, parsed } from "./splats.js";

export class BrowserSplats {
  // `sorted` hears that another order was drawn, `failed` why it cannot go on.
  constructor(canvas, sorted, failed) {
    Object.assign(this, { canvas, sorted, failed, version: null, loading: null, renderer: null, sorter: null, direction: null, settled: false, fence: null });
    canvas.addEventListener("webglcontextlost", () => this.fail("the graphics card gave up"));
  }

  ready(version) { return this.version === version && this.renderer?.sorted === true; }

  // Fetch a scene ('browser' of the server's description); a newer call makes this one end without an effect.
  async load(about, version) {
    if (this.version === version || this.loading === version) return;
    this.loading = version;
    try {
      const answer = await fetch(about.address);
      if (!answer.ok) throw new Error((await answer.text()).trim());
      const scene = parsed(await inflated([await answer.arrayBuffer()]));
      if (this.loading !== version) return;
      this.drop();
      this.renderer = new SplatRenderer(this.canvas, scene, about.antialiased);
      this.origin = about.origin;
      this.version = version;
      this.sorter = new Sorter(scene.positions, (order) => this.take(order), (why) => this.fail(why));
      this.sorter.sort([0, 0, 1]);
    } catch (error) {
      if (this.loading === version || this.version === version) this.fail(error.message);
    } finally {
      if (this.loading === version) this.loading = null;
    }
  }

  take(order) {
    this.renderer.setOrder(order);
    this.settled = !this.sorter.busy && !this.sorter.next;
    this.sorted();
  }

  fail(why) { this.drop(); this.failed(why); }

  drop() {
    this.sorter?.stop();
    Object.assign(this, { version: null, renderer: null, sorter: null, direction: null, settled: false, fence: null });
  }

  // Draw what a camera (pose, fov) sees; true when the order is that of this view.
  draw(pose, fov, ratio) {
    const local = pose.slice(), [x, y, z] = this.origin;
    for (const row of [0, 4, 8]) local[row + 3] += pose[row] * x + pose[row + 1] * y + pose[row + 2] * z;
    const camera = cameraOfPose(local, 0.5 / Math.tan(fov / 2)), before = this.direction;
    if (!before || camera.back.some((value, axis) => Math.abs(value - before[axis]) > 1e-6)) {
      this.direction = camera.back;
      this.settled = false;
      this.sorter.sort(camera.back);
    }
    this.renderer.draw(camera, ratio);
    const { gl } = this.renderer;
    this.fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    return this.settled;
  }

  // Whether the last picture has left the graphics card: WebGL only takes orders, what it draws is done later.
  drawn() {
    if (!this.fence) return true;
    const { gl } = this.renderer;
    if (gl.getSyncParameter(this.fence, gl.SYNC_STATUS) !== gl.SIGNALED && !gl.isContextLost()) return false;
    gl.deleteSync(this.fence);
    this.fence = null;
    return true;
  }
}
