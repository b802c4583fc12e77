"""Reward functions as users write them on a bad day; which one strikes is in the response."""

import os
import signal
import time


def careless(response, row):
    match response:
        case "hang":
            time.sleep(3600)
        case "hang and ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                pass
        case "throw":
            raise KeyError("score")
        case "exit":
            os._exit(3)
        case "nan":
            return float("nan")
        case "text":
            return "very good"
    return float(len(response))
