import json
import sys


def score(prompt, response):
    return sum(response.lower().count(word) for word in ("first", "then", "try", "use", "can", "should"))


for line in sys.stdin:
    print(json.dumps([score(item["prompt"], item["response"]) for item in json.loads(line)]), flush=True)
