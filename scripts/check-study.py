"""Rates a study's page in headless Chromium with the keyboard, loads it again, and writes what it exports.

    python scripts/check-study.py STUDY/study.html ANSWERS.json

Fails on anything written to the console, on keys and buttons that do something else, on answers that are forgotten when the
page is loaded again, and on a page that is wider than the window. Needs only Python and Chromium.
"""

import argparse
import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

spec = importlib.util.spec_from_file_location("check_report", Path(__file__).with_name("check-report.py"))
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)

# Of answers that are really forgotten no try finds any.
TRIES = 5

PROBE = """
<script>
const tell = () => ({exported: JSON.parse(exported()), count: at("count").textContent, progress: at("progress").value,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth});
const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const before = sessionStorage.getItem("before");
if (before === null) {
  at("rater").value = "ann";
  at("rater").dispatchEvent(new Event("input"));
  const keys = ["ArrowLeft", "ArrowRight", "ArrowDown"];
  // The second answer is taken back and given again, by a button.
  press(keys[0]);
  press(keys[0]);
  press("Backspace");
  at("choose-right").click();
  for (let i = 2; i < pairs.length; i++) press(keys[i % 3]);
  sessionStorage.setItem("before", JSON.stringify(tell()));
  location.reload();
} else {
  document.title = JSON.stringify([JSON.parse(before), tell()]);
}
</script>
"""


def rated(page, width):
    """Before and after it was loaded again."""
    out = report.chromium("--dump-dom", f"--window-size={width},900", f"file://{page}")
    console = [line for line in out.stderr.splitlines() if "CONSOLE" in line]
    title = re.search(r"<title>(\[.*?\])</title>", out.stdout)
    if console or title is None:
        sys.exit("\n".join(console or ["the page did not finish", out.stderr[-2000:]]))
    return json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page")
    parser.add_argument("answers")
    args = parser.parse_args()
    html = Path(args.page).read_text()
    if re.search(r"(src|href)=\"(?!#)|url\(|@import", html):
        sys.exit("the page refers to something outside of itself")
    pairs = json.loads(re.search(r'(?s)id="data">(.*?)</script>', html)[1])["pairs"]
    expected = {str(p["id"]): ["left", "right", "tie"][i % 3] for i, p in enumerate(pairs)}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "study.html"
        page.write_text(html.replace("</body>", PROBE + "</body>"))
        for width in (1280, 400):
            # A browser may load a page again before it has stored what was just written: that try says nothing.
            for _ in range(TRIES):
                states = rated(page, width)
                if states[1]["exported"]["answers"]:
                    break
            for found in states:
                print(f"{width} px: {found['count']}")
                if found["exported"]["answers"] != expected or found["exported"]["rater"] != "ann":
                    sys.exit(f"answers are not what was pressed: {found['exported']}")
                if found["progress"] != len(pairs) or found["wide"] > 0:
                    sys.exit(f"the page does not work: {found}")
    Path(args.answers).write_text(json.dumps(found["exported"]))


if __name__ == "__main__":
    main()
