"""Opens a report in headless Chromium, sorts every table, browses every response, and looks at its width.

    python scripts/check-report.py runs/quickstart/report.html [--pictures FOLDER]

Fails on anything written to the console, on a table that does not sort, on a browser of responses that stays
empty, and on a page that is wider than the window, at 1280 and 400 pixels, light and dark. Needs only Python
and Chromium.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROBE = """
<script>
const report = {tables: 0, unsorted: [], cards: 0, tokens: 0, empty: 0};
for (const table of document.querySelectorAll("table")) {
  report.tables += 1;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    for (const sign of [-1, 1]) {
      head.firstChild.click();
      const rows = [...table.tBodies[0].rows].map(r => r.cells[column]);
      const values = rows.map(c => head.classList.contains("n")
        ? (c.dataset.v === undefined ? -Infinity : Number(c.dataset.v)) : c.textContent);
      for (let i = 1; i < values.length; i++) {
        const order = typeof values[i] === "number" ? values[i - 1] - values[i] : values[i - 1].localeCompare(values[i]);
        if (sign * order > 0) report.unsorted.push(head.textContent);
      }
    }
  });
}
const options = [...document.querySelectorAll("select")];
const visit = at => {
  if (at === options.length) {
    const cards = document.querySelectorAll(".card").length;
    if (cards === 0) report.empty += 1;
    report.cards += cards;
    report.tokens += document.querySelectorAll(".response span").length;
    return;
  }
  for (let i = 0; i < options[at].options.length; i++) {
    options[at].value = i;
    options[at].dispatchEvent(new Event("change"));
    visit(at + 1);
  }
};
visit(0);
const token = document.querySelector(".response span");
if (token) token.dispatchEvent(new Event("mouseenter"));
report.reading = document.querySelector(".reading").textContent;
report.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = JSON.stringify(report);
</script>
"""


def chromium(*arguments):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("Chromium is not there; on Debian: apt-get install chromium")
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    # A report needs no network, and a browser that looks for updates does.
    alone = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    log = ["--enable-logging=stderr", "--v=0"]
    with tempfile.TemporaryDirectory() as profile:
        own = [program, *common, *alone, f"--user-data-dir={profile}", *log, *arguments]
        return subprocess.run(own, capture_output=True, text=True, timeout=300)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report")
    parser.add_argument("--pictures")
    args = parser.parse_args()
    html = Path(args.report).read_text()
    if re.search(r"(src|href)=\"(?!#)|url\(|@import", re.sub(r"(?s)<pre>.*?</pre>|<script type=.*?</script>", "", html)):
        sys.exit("the report refers to something outside of itself")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "probe.html"
        page.write_text(html.replace("</body>", PROBE + "</body>"))
        for width in (1280, 400):
            for dark in (False, True):
                scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
                place = [f"--window-size={width},2000", *scheme, f"file://{page}"]
                out = chromium("--dump-dom", *place)
                console = [line for line in out.stderr.splitlines() if "CONSOLE" in line]
                title = re.search(r"<title>(\{.*?\})</title>", out.stdout)
                if console or title is None:
                    sys.exit("\n".join(console or ["the page did not finish", out.stderr[-2000:]]))
                found = json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&"))
                print(f"{width} px{', dark' if dark else ''}: {found}")
                wrong = found["unsorted"] or found["empty"] or not found["tokens"] or found["overflow"] > 0
                if wrong or "log p" not in found["reading"]:
                    sys.exit("the report does not work")
                if args.pictures:
                    picture = Path(args.pictures) / f"report_{width}{'_dark' if dark else ''}.png"
                    chromium(f"--screenshot={picture}", f"--window-size={width},4000", *scheme, f"file://{Path(args.report).resolve()}")


if __name__ == "__main__":
    main()
