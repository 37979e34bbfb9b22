// What llama.cpp computes of a GGUF. Standard input: {model, texts, ids: [[...]]}; standard output: {cut: the ids of each
// text, steps: for each list of ids, for all but its last one, [the likeliest next id, log-probability of the next id]}.
import {readFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const asked = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: asked.model});
const context = await model.createContext({
    contextSize: 512, threads: 1, flashAttention: false, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
});
const sequence = context.getSequence();
const cut = asked.texts.map((text) => [...model.tokenize(text, false)]);
const steps = [];
for (const ids of asked.ids) {
    await sequence.clearHistory();
    const found = await sequence.controlledEvaluate(
        ids.slice(0, -1).map((id) => [id, {generateNext: {logits: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}}])
    );
    steps.push(found.map((each, i) => {
        const logits = each.next.logits;
        let top = 0, most = -Infinity, total = 0;
        for (const [id, value] of logits) if (value > most) [top, most] = [id, value];
        for (const value of logits.values()) total += Math.exp(value - most);
        return [top, logits.get(ids[i + 1]) - most - Math.log(total)];
    }));
}
process.stdout.write(JSON.stringify({cut, steps, template: model.fileInfo.metadata.tokenizer?.chat_template ?? "",
    end: model.tokens.eos}));
await llama.dispose();
