// A chat with one model, or with two side by side. Model output is shown as text and never run.
"use strict";

const at = (id) => document.getElementById(id);
const talks = [...document.querySelectorAll(".talk")].map((section) => ({
  section, model: section.querySelector("select"), turns: section.querySelector(".turns"), messages: [],
  stop: null, // aborts the answer in progress
}));

let sampling = {}; // recommended settings, by model
let systems = {}; // the system prompt of training, by model
let defaults = {}; // the system prompt that the server adds where there is none, by model
let typed = false; // whether the user has written a system prompt; until then each model gets its own

const headers = () => ({ "content-type": "application/json", ...(at("key").value && { authorization: `Bearer ${at("key").value}` }) });

async function failure(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server answered with status ${response.status}`;
}

async function loadModels() {
  const response = await fetch("/v1/models", { headers: headers() });
  at("key-field").hidden = response.status !== 401 && !at("key").value;
  if (!response.ok) { at("error").textContent = await failure(response); return; }
  at("error").textContent = "";
  const models = (await response.json()).data, names = models.map((model) => model.id);
  sampling = Object.fromEntries(models.filter((model) => model.sampling).map((model) => [model.id, model.sampling]));
  const field = at("temperature"), known = new Set(names.map((name) => sampling[name]?.temperature ?? field.defaultValue));
  field.placeholder = [...known].join(" / ");
  if (Object.keys(sampling).length && field.value === field.defaultValue) field.value = "";
  systems = Object.fromEntries(models.map((model) => [model.id, model.system ?? ""]));
  defaults = Object.fromEntries(models.map((model) => [model.id, model.default_system ?? ""]));
  talks.forEach((talk, index) => {
    talk.model.replaceChildren(...names.map((name) => new Option(name)));
    talk.model.selectedIndex = Math.min(index, names.length - 1);
  });
  showSystem();
}

// Shows the system prompt of the models on the page; that of the user stays.
function showSystem() {
  const names = talks.filter((talk) => !talk.section.hidden).map((talk) => talk.model.value);
  const [first, ...others] = new Set(names.map((name) => systems[name] ?? ""));
  const none = names.some((name) => defaults[name]) ? "that of the server" : "none";
  if (!typed) at("system").value = others.length ? "" : first;
  at("system").placeholder = others.length && !typed ? "each model's own" : none;
}

function show(talk, role, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  talk.turns.append(turn);
  talk.turns.scrollTop = talk.turns.scrollHeight;
  return turn;
}

// Yields the events of a stream.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// The number in a field; an empty field means its default.
const number = (id) => Number(at(id).value || at(id).defaultValue);

// The temperature in its field; if that is empty, undefined for a model with recommended settings, which the server has.
const temperature = (name) => (at("temperature").value || !sampling[name] ? number("temperature") : undefined);

async function answer(talk, question) {
  const messages = talk.messages; // a new chat during the answer has other ones
  const stop = talk.stop = new AbortController();
  show(talk, "user", question);
  messages.push({ role: "user", content: question });
  const system = typed ? at("system").value.trim() : systems[talk.model.value];
  const body = {
    model: talk.model.value, stream: true, stream_options: { include_usage: true },
    temperature: temperature(talk.model.value), max_tokens: number("max-tokens"),
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
  };
  const turn = show(talk, "assistant", ""), began = performance.now();
  let text = "", reason = null, tokens = 0;
  try {
    const asked = { method: "POST", headers: headers(), body: JSON.stringify(body), signal: stop.signal };
    const response = await fetch("/v1/chat/completions", asked);
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      tokens = event.usage?.completion_tokens ?? tokens;
      for (const choice of event.choices) { text += choice.delta.content; reason = choice.finish_reason ?? reason; }
      turn.textContent = text;
      talk.turns.scrollTop = talk.turns.scrollHeight;
    }
    const note = document.createElement("small");
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    note.textContent = `${tokens} tokens in ${seconds} s${reason === "length" ? ", cut at the token limit" : ""}`;
    turn.append(note);
    messages.push({ role: "assistant", content: text });
  } catch (error) {
    if (error.name === "AbortError") { messages.push({ role: "assistant", content: text }); return; }
    messages.pop(); // drop the question, since it has no answer
    turn.classList.add("failed");
    turn.textContent = error.message;
  } finally {
    if (talk.stop === stop) talk.stop = null; // the next answer may have begun
  }
}

async function send() {
  const question = at("question").value.trim();
  const running = talks.filter((talk) => talk.stop);
  if (running.length) { running.forEach((talk) => talk.stop.abort()); return; }
  if (!question) return;
  at("question").value = "";
  at("send").textContent = "Stop";
  await Promise.all(talks.filter((talk) => !talk.section.hidden).map((talk) => answer(talk, question)));
  at("send").textContent = "Send";
}

function reset(talk) {
  talk.stop?.abort();
  talk.messages = [];
  talk.turns.replaceChildren();
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
at("compare").addEventListener("change", () => { talks[1].section.hidden = !at("compare").checked; showSystem(); talks.forEach(reset); });
at("system").addEventListener("input", () => { typed = true; showSystem(); });
at("reset").addEventListener("click", () => talks.forEach(reset));
at("key").addEventListener("change", loadModels);
talks.forEach((talk) => talk.model.addEventListener("change", () => { showSystem(); reset(talk); }));
loadModels();
