"""Draw the picture of the page that `--show` writes: docs/figures/show.png.

    pip install selenium                and Debian's packages chromium and chromium-driver
    python -m scripts.figures.screenshot  ask the embedded model, open the page, take the picture
    python -m scripts.figures.screenshot --page out.html --width 360 --dark --out phone.png

The browser is headless, with a profile of its own that is thrown away, and is told to call nobody.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMPT = "What is 37 + 58?"
# Where the model was least sure: there is most to see.
UNSURE = """const p = [...data.p.values].map((p, t) => (isWritten(t) ? p : 1));
go({ token: p.indexOf(Math.min(...p)), layer: 2, head: 2 });"""
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run",
         "--hide-scrollbars")  # fmt: skip


@contextmanager
def browser(width=1280, height=960, dark=False, scale=1):
    """Open a headless Chromium whose window shows so many CSS pixels; yield selenium's driver."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*QUIET, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        driver = webdriver.Chrome(options, service)
        try:
            view(driver, width, height, dark, scale)
            yield driver
        finally:
            driver.quit()


def view(driver, width, height, dark=False, scale=1):
    """Look through a screen of this size, in the light or in the dark."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600})
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def main():
    """Take the picture that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, help="a page that exists (default: a fresh one)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "show.png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, help="default: that of the whole page")
    parser.add_argument("--scale", type=float, default=1, help="picture dots to a CSS pixel")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--keys", help="typed before, as ArrowRight,ArrowDown,l (default: go to "
                        "the token of the reply that was least likely)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        page = args.page or Path(directory) / "show.html"
        if args.page is None:
            subprocess.run([sys.executable, "-m", "k2ref", "--greedy", "--show", page, PROMPT],
                           check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        with browser(args.width, args.height or 960, args.dark, args.scale) as driver:
            driver.get(page.resolve().as_uri())
            if args.keys is None:
                driver.execute_script(UNSURE)
            for key in filter(None, (args.keys or "").split(",")):
                driver.execute_script("document.dispatchEvent(new KeyboardEvent("
                                      "'keydown', {key: arguments[0]}))", key)
            if args.height is None:
                height = driver.execute_script("return document.documentElement.scrollHeight")
                view(driver, args.width, height, args.dark, args.scale)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_bytes(driver.get_screenshot_as_png())
            for entry in driver.get_log("browser"):
                print(entry["level"], entry["message"], file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
