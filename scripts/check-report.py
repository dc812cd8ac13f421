"""Opens a report in headless Chromium, sorts every table, browses responses, and looks at its width and contrast.

    python scripts/check-report.py runs/quickstart/report.html [--pictures FOLDER]

Fails on anything written to the console (so on a broken content security policy, too), on a reference to something
outside of the file, on more than 5,000 nodes at opening, on a table that does not sort, on a browser of responses that
stays empty or does not filter, on text with too little contrast, on a page that is wider than the window, at 1280 and
400 pixels, light and dark, and on more than ten printed pages. Needs only Python and Chromium.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROBE = """
const report = {nodes: document.querySelectorAll("*").length, tables: 0, unsorted: [], empty: [], cards: 0, tokens: 0, pale: [], wrong: []};
const need = (holds, what) => { if (!holds) report.wrong.push(what); };
const sum = document.querySelector(".summary");
report.table_ends = sum ? Math.round(sum.getBoundingClientRect().bottom + scrollY) : 0;
report.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;

// Contrast of text with what it stands on (WCAG: 4.5).
const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
const ground = node => {
  for (; node; node = node.parentElement) {
    const own = numbers(getComputedStyle(node).backgroundColor);
    if (own.length < 4 || own[3] > 0.99) return own;
  }
  return [255, 255, 255];
};
for (const node of document.querySelectorAll("a, td, th, small, summary, p, li, dt, dd, .hint, .tag, h1, h2, h3, h4, blockquote, label, figcaption")) {
  const [a, b] = [light(numbers(getComputedStyle(node).color)), light(ground(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) report.pale.push(node.tagName + "." + node.className + " " + ratio.toFixed(1));
}
for (const picture of document.images) {
  need(picture.naturalWidth > 0, "a figure is broken");
  need(picture.alt.length > 0, "a figure has no text");
}
document.querySelectorAll("details").forEach(fold => { fold.open = true; });

const sortAll = () => {
  for (const table of document.querySelectorAll("table")) {
    report.tables += 1;
    need(table.caption && table.caption.textContent, "a table has no caption");
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      for (const sign of [-1, 1]) {
        button.click();
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
};
const look = what => {
  const cards = document.querySelectorAll(".card").length;
  if (cards === 0) report.empty.push(what);
  report.cards += cards;
  report.tokens += document.querySelectorAll(".response span").length;
};
const browse = () => {
  for (const select of document.querySelectorAll("select")) {
    for (const option of [...select.options]) {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
      look(select.parentElement.textContent.slice(0, 30) + " " + option.text);
    }
    select.selectedIndex = 0;
    select.dispatchEvent(new Event("change"));
  }
  const [back, on] = document.querySelectorAll(".pager button");
  for (let i = 0; i < 200 && !on.disabled; i++) { on.click(); look("page " + i); }
  need(on.disabled, "the last case is not reached in 200 steps or is not the last") ;
  const link = document.querySelector("div.asked a");
  const text = document.querySelector("div.asked").textContent;
  const search = document.querySelector("input[type=search]");
  search.value = "\\u0001 nothing has this";
  search.dispatchEvent(new Event("input"));
  need(document.querySelectorAll(".card").length === 0, "the search finds what is not there");
  location.hash = link.getAttribute("href");
  return new Promise(done => setTimeout(() => {
    need(document.querySelector("div.asked").textContent === text, "a link does not lead to its case");
    need(search.value === "", "a link keeps the search");
    done();
  }, 100));
};
setTimeout(async () => {
  sortAll();
  await browse();
  const token = document.querySelector(".response span");
  if (token) token.dispatchEvent(new Event("mouseenter"));
  report.reading = document.querySelector(".reading").textContent;
  report.overflow = Math.max(report.overflow, document.documentElement.scrollWidth - document.documentElement.clientWidth);
  document.title = JSON.stringify(report);
}, 200);
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
        line = [program, *common, *alone, f"--user-data-dir={profile}", *log, *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=300)


def check_references(html):
    """Nothing but fragments and data may be referred to; texts are no tags."""
    tags = "".join(re.findall(r"<[a-zA-Z][^>]*>", re.sub(r"(?s)<script.*?</script>", "", html)))
    style = "".join(re.findall(r"(?s)<style>.*?</style>", html))
    if re.search(r"(src|href|srcset|action)=(?!\"#|\"data:)", tags) or re.search(r"url\(|@import", style):
        sys.exit("the report refers to something outside of itself")
    if "default-src 'none'" not in tags:
        sys.exit("the report has no content security policy")


def probed(html):
    """The page with the probe, which its policy has to allow."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    before, after = html.rsplit("</body>", 1)
    return f"{before}<script>{PROBE}</script></body>{after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report")
    parser.add_argument("--pictures")
    args = parser.parse_args()
    html = Path(args.report).read_text()
    check_references(html)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "probe.html"
        page.write_text(probed(html))
        for width in (1280, 400):
            for dark in (False, True):
                scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
                window = [f"--window-size={width},2000", *scheme, f"file://{page}"]
                out = chromium("--dump-dom", *window)
                console = [line for line in out.stderr.splitlines() if "CONSOLE" in line]
                title = re.search(r"<title>(\{.*?\})</title>", out.stdout)
                if console or title is None:
                    sys.exit("\n".join(console or ["the page did not finish", out.stderr[-2000:]]))
                seen = json.loads(title[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
                print(f"{width} px{', dark' if dark else ''}: {seen}")
                wrong = seen["unsorted"] or seen["empty"] or seen["pale"] or seen["wrong"] or not seen["tokens"]
                if wrong or seen["overflow"] > 0 or seen["nodes"] > 5000 or "log p" not in seen["reading"]:
                    sys.exit("the report does not work")
                if args.pictures:
                    picture = Path(args.pictures) / f"report_{width}{'_dark' if dark else ''}.png"
                    chromium(f"--screenshot={picture}", f"--window-size={width},4000", *scheme, f"file://{Path(args.report).resolve()}")
        printed = Path(args.pictures or folder) / "report.pdf"
        chromium(f"--print-to-pdf={printed.resolve()}", "--no-pdf-header-footer", f"file://{Path(args.report).resolve()}")
        pages = len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes()))
        print(f"printed: {pages} pages")
        if not 0 < pages <= 10:
            sys.exit("the report does not print to ten pages")


if __name__ == "__main__":
    main()
