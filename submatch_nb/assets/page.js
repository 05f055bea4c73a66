// Without a kernel: a model that keeps its own state, for each explorer on the page.
function model(state) {
  const listeners = new Map();
  return {
    get: name => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const f of listeners.get(name) ?? []) f();
    },
    save_changes() {},
    on(event, f) { const name = event.slice("change:".length); listeners.set(name, [...(listeners.get(name) ?? []), f]); },
    off() {},
  };
}

for (const data of document.querySelectorAll("script.submatch-data")) {
  render({ model: model(JSON.parse(data.textContent)), el: data.previousElementSibling });
  data.remove();
}
