"""Run in vLLM's environment: draw completions and print prompts, tokens and vLLM's log-probs as JSON.

vllm_logps.py MODEL COUNT
"""

import json
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    model, count = sys.argv[1], int(sys.argv[2])
    llm = LLM(model=model, enforce_eager=True, max_model_len=512, seed=0)
    parameters = [SamplingParams(temperature=1.0, top_p=1.0, max_tokens=24, seed=i, logprobs=0) for i in range(count)]
    found = llm.chat([[{"role": "user", "content": f"What is {i} + 3?"}] for i in range(count)], parameters)
    rows = []
    for result in found:
        drawn = result.outputs[0]
        logps = [step[token].logprob for token, step in zip(drawn.token_ids, drawn.logprobs, strict=True)]
        rows.append({"prompt": list(result.prompt_token_ids), "completion": list(drawn.token_ids), "logps": logps})
    print("ROWS" + json.dumps(rows))


if __name__ == "__main__":
    main()
