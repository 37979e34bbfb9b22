"""Run by an interpreter with transformers 4.51: prints how that version reads a saved folder, as JSON.

Arguments: folder, question.
"""

import json
import sys

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

folder, question = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(folder)
told = {"ids": tokenizer(question, add_special_tokens=False)["input_ids"]}
told["dtype"] = str(AutoConfig.from_pretrained(folder).torch_dtype)
rows = [{"role": "user", "content": question}]
if AutoConfig.from_pretrained(folder).architectures[0].endswith("ForCausalLM"):
    net = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    text = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
    asked = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    made = net.generate(**asked, do_sample=False, max_new_tokens=24, tokenizer=tokenizer)
    told["text"] = tokenizer.decode(made[0][asked["input_ids"].shape[1] :])
else:
    net = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    text = tokenizer.apply_chat_template([*rows, {"role": "assistant", "content": "yes"}], tokenize=False)
    told["score"] = net(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0].item()
print(json.dumps(told))
