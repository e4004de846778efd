// What the marks in a prompt mean, for colouring: weights, options, chunks, adapters. The rules are docs/prompts.md's;
// the server reads the prompt by the real ones and says what is wrong with it.

const UP = 1.1;

/** Stretches of the text that mean more than themselves: [{start, end, kind, weight?}], in order. */
export function stretches(text, adapters = []) {
  const found = [];
  const weights = weightsOf(text);
  let start = 0;
  for (let at = 1; at <= text.length; at += 1) {
    if (at < text.length && weights[at] === weights[start]) continue;
    if (weights[start] !== 1) found.push({ start, end: at, kind: weights[start] > 1 ? "up" : "down", weight: weights[start] });
    start = at;
  }
  const others = [
    [/(?<!\\)\{[^{}]*\|[^{}]*\}/g, () => "wildcard"],
    [/(?<![\\\w])BREAK(?!\w)/g, () => "break"],
    [/(?<!\\)<(?:lora|lyco):([^:<>]+)(?::[^<>]*)?>/g, (match) => (adapters.some((one) => named(one, match[1])) ? "adapter" : "wrong")],
    [/(?<!\\)__[\w/-]+__/g, () => "wrong"],
  ];
  for (const [pattern, kindOf] of others) {
    for (const match of text.matchAll(pattern)) {
      found.push({ start: match.index, end: match.index + match[0].length, kind: kindOf(match) });
    }
  }
  return found;
}

/** The weight of every character. */
function weightsOf(text) {
  const weights = new Array(text.length).fill(1);
  const open = [];
  for (let at = 0; at < text.length; at += 1) {
    const mark = text[at];
    if (mark === "\\") at += 1;
    else if (mark === "(" || mark === "[") open.push({ mark, at });
    else if ((mark === ")" && open.at(-1)?.mark === "(") || (mark === "]" && open.at(-1)?.mark === "[")) {
      const { at: from } = open.pop();
      const given = mark === ")" ? /:\s*([\d.]+)\s*$/.exec(text.slice(from, at)) : null;
      const weight = given ? Number(given[1]) : mark === ")" ? UP : 1 / UP;
      for (let inside = from; inside <= at; inside += 1) weights[inside] *= weight;
    }
  }
  return weights;
}

function named(adapter, name) {
  return [adapter.id, adapter.name, adapter.title].some((one) => one?.toLowerCase() === name.trim().toLowerCase());
}

/** The prompt without `<lora:name:weight>` of known adapters, and those adapters: a prompt itself opens no files. */
export function takeAdapters(text, adapters) {
  const taken = [];
  const prompt = text.replace(/(?<!\\)<(?:lora|lyco):([^:<>]+)(?::([\d.-]+))?[^<>]*>/g, (whole, name, weight) => {
    const adapter = adapters.find((one) => named(one, name));
    if (!adapter) return whole;
    taken.push({ id: adapter.id, weight: weight === undefined ? 1 : Number(weight) });
    return "";
  });
  return { prompt: prompt.trim(), adapters: taken };
}
