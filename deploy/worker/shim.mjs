// What the platform loads: starts the WebAssembly program, hands it requests, and starts it anew after a crash.
//
// All objects of an isolate share one instance of the program. A panic leaves that instance in an unknown state, so
// everyone who waits gets an error (callers retry), and a fresh instance takes its place: each object then starts again
// from its storage, as after an eviction.
import { DurableObject } from "cloudflare:workers";
import module from "./build/dosql_worker_bg.wasm";
import * as program from "./build/dosql_worker.js";

// Counts instances; an object made by an earlier one is made again.
let instance = 1;
// How to fail each call that is under way.
const waiting = new Set();

program.initSync({ module });

function crashed() {
  instance += 1;
  const calls = [...waiting];
  waiting.clear();
  for (const fail of calls) fail(new Error("the program crashed and restarts; try again"));
  // The crash is still unwinding through the old instance.
  queueMicrotask(() => program.__wbg_reset_state());
}

// The program's panic hook sets this.
Object.defineProperty(globalThis.__worker_init_state, "criticalError", {
  get: () => false,
  set: (panicked) => panicked && crashed(),
});

async function guarded(call) {
  let fail;
  const failure = new Promise((_, reject) => (fail = reject));
  waiting.add(fail);
  const begun = instance;
  try {
    return await Promise.race([call(), failure]);
  } catch (error) {
    // Out of memory or a stack overflow traps without a panic.
    if (error instanceof WebAssembly.RuntimeError && begun === instance) crashed();
    throw error;
  } finally {
    waiting.delete(fail);
  }
}

function objectClass(name) {
  return class extends DurableObject {
    #object;
    #instance = 0;

    #current() {
      if (this.#instance !== instance) {
        this.#object = new program[name](this.ctx, this.env);
        this.#instance = instance;
      }
      return this.#object;
    }

    fetch(request) {
      // Here and not in the program, which must not be cut off in the middle.
      if (new URL(request.url).pathname === "/evict") this.ctx.abort("evicted on request");
      return guarded(() => this.#current().fetch(request));
    }

    alarm() {
      return guarded(() => this.#current().alarm());
    }

    webSocketMessage(socket, message) {
      return guarded(() => this.#current().webSocketMessage(socket, message));
    }

    webSocketClose(socket, code, reason, clean) {
      return guarded(() => this.#current().webSocketClose(socket, code, reason, clean));
    }

    webSocketError(socket, error) {
      return guarded(() => this.#current().webSocketError(socket, error));
    }
  };
}

export const DoSQL = objectClass("DoSQL");
export const DoLake = objectClass("DoLake");

export default {
  fetch(request, env, context) {
    return guarded(() => program.fetch(request, env, context));
  },
};
