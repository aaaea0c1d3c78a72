#!/usr/bin/env python3
"""Uses the page of a running `loam serve` in a real browser without a window: sends, reads along, stops, regenerates,
reloads, switches the language and the colours. Screenshots to look at go into a folder.

    apt-get install chromium chromium-driver; pip install selenium
    python scripts/check_page.py http://127.0.0.1:8080 /tmp/screenshots

The model should be slow enough to be watched, such as one of a hundred million parameters on one thread, with a context of
2048 tokens or more. The exit status is 1 where something does not work.
"""

import os
import shutil
import sys
import time

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

BASE, FOLDER = sys.argv[1], sys.argv[2]
os.makedirs(FOLDER, exist_ok=True)
options = webdriver.ChromeOptions()
FLAGS = (
    "--headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --window-size=1200,800 --lang=en "
    # It looks for nothing outside of this machine.
    "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
)
for flag in FLAGS.split():
    options.add_argument(flag)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
# Debian's driver, if it is there; else selenium looks for one, and downloads it.
driver = shutil.which("chromedriver")
browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver) if driver else None)
shots = []


def find(what):
    return browser.find_element(By.CSS_SELECTOR, what)


def turns(kind="turn"):
    # At once: a turn that is found and read in two steps may have been drawn anew in between.
    return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())", f".{kind}")


def wait(what, is_so, seconds=60):
    WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: is_so(), f"{what} never happened")


def shot(name):
    shots.append(f"{len(shots) + 1:02}-{name}.png")
    browser.save_screenshot(os.path.join(FOLDER, shots[-1]))


def idle():
    return find("#send").is_enabled()


def set_field(name, value):
    field = find(f"#{name}")
    field.clear()
    field.send_keys(str(value), Keys.TAB)


def ask(text):
    find("#prompt").send_keys(text, Keys.ENTER)


def step(name):
    print(f"ok    {name}", flush=True)


try:
    browser.get(BASE)
    wait("a model", lambda: find("#model").get_attribute("value"))
    shot("empty")
    find("#settings summary").click()
    set_field("max_tokens", 200)
    set_field("seed", 3)
    shot("settings")
    find("#settings summary").click()
    step("the page opens and knows the model")

    ask("Where is the fox?")
    lengths = set()
    while not (idle() and len(turns()) == 2):
        boxes = turns("assistant")
        lengths.add(len(boxes[-1]) if boxes else 0)
        time.sleep(0.01)
    assert turns("user") == ["Where is the fox?"] and len(turns("assistant")[0]) > 5, turns()
    assert len(lengths) > 2, f"the answer came at once: {lengths}"
    first = turns("assistant")[0]
    shot("answer")
    step(f"an answer comes bit by bit ({len(lengths)} lengths seen)")

    token = find(".assistant span[title]")
    assert "%" in token.get_attribute("title") and len(token.get_attribute("title").splitlines()) >= 4
    webdriver.ActionChains(browser).move_to_element(token).perform()
    time.sleep(0.3)
    shot("probabilities")
    step("tokens tell how likely they were")

    find("#again").click()
    wait("another answer", lambda: idle() and len(turns()) == 2)
    text_of = lambda text: text.rsplit("\n", 1)[0]
    assert text_of(turns("assistant")[0]) == text_of(first), "the same seed gave another answer"
    step("regenerate with the same seed gives the same answer")

    set_field_open = find("#settings summary")
    set_field_open.click()
    set_field("max_tokens", 100000)
    set_field_open.click()
    ask("Tell a long story." + Keys.SHIFT + Keys.ENTER + Keys.NULL + "Two lines.")
    wait("a long answer", lambda: len(turns("assistant")) == 2 and len(turns("assistant")[1]) > 20)
    shot("streaming")
    was_running = not idle()
    find("#stop").click()
    wait("the end", idle, 10)
    kept = turns("assistant")[1]
    time.sleep(0.5)
    assert turns("assistant")[1] == kept, "it went on"
    assert was_running, "the answer was over before it could be stopped"
    assert turns("user")[1] == "Tell a long story.\nTwo lines."
    step("stop ends an answer and keeps what there is")

    before = turns()
    browser.refresh()
    wait("the history", lambda: turns() == before, 10)
    assert find("#max_tokens").get_attribute("value") == "100000"
    step("a reload keeps chats and settings")

    Select(find("#language")).select_by_value("zh")
    wait("Chinese", lambda: find("#send").text == "发送", 5)
    assert browser.execute_script("return document.documentElement.lang") == "zh"
    shot("chinese")
    find("#theme").click()
    shot("other-colours")
    find("#fresh").click()
    wait("a new chat", lambda: not turns(), 5)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chats button")) == 2
    browser.refresh()
    wait("Chinese after a reload", lambda: find("#send").text == "发送", 5)
    browser.find_elements(By.CSS_SELECTOR, "#chats button")[1].click()
    wait("the old chat", lambda: len(turns()) == len(before), 5)
    step("language, colours, several chats, all kept")

    Select(find("#language")).select_by_value("en")
    find("#settings summary").click()
    set_field("max_tokens", 0)
    ask("This fails.")
    wait("an error", lambda: browser.find_elements(By.CSS_SELECTOR, ".error"), 10)
    shot("error")
    set_field("max_tokens", 40)
    find("#settings summary").click()
    ask("And this works.")
    wait("an answer after an error", lambda: idle() and not turns()[-1].startswith("This"), 60)
    step(f"an error is shown ({browser.find_elements(By.CSS_SELECTOR, '.error')[0].text!r}), and the chat goes on")

    browser.set_window_size(420, 800)
    time.sleep(0.3)
    shot("narrow")
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the narrow page is {wide} pixels too wide"
    step("it fits a narrow window")
    # The browser's advice to web authors (DEBUG) is no problem, and the refused request above was wanted.
    grave = [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
    loud = [entry for entry in grave if "max_tokens" not in entry["message"] and "400" not in entry["message"]]
    assert not loud, loud
    print(f"screenshots: {FOLDER}: {', '.join(shots)}")
finally:
    shot("last")
    browser.quit()
