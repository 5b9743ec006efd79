"""Calls that are read on threads of their own, so that many run at once and can be compared afterwards."""

import threading
import time

import grpc

import api
import serving

PROMPTS = ["The history of the city", "Once upon a time", "Water is", "In the year", "A list of"]


def request_number(number, max_new_tokens=200):
    """Greedy and seeded ones, of different prompts and lengths."""
    sampling = {"temperature": 0} if number % 2 else {"temperature": 0.9, "seed": str(number)}
    stopping = {"ignore_eos": True, "max_new_tokens": max_new_tokens + number % 7}
    return api.request(
        text=PROMPTS[number % len(PROMPTS)] + " and" * (number % 11), sampling=sampling, stopping=stopping
    )


class Stream(threading.Thread):
    """One call, read to its end on a thread of its own."""

    def __init__(self, client, asked):
        super().__init__(daemon=True)
        self.client, self.asked = client, asked
        self.choices = {}
        self.error = None
        self.times = []
        self.start()

    def run(self):
        try:
            for event in self.client.stream(self.asked, timeout=300 * serving.SLOWNESS):
                self.choices.setdefault(event.choice, api.Choice()).add(event)
                self.times.append(time.monotonic())
        except grpc.RpcError as error:
            self.error = error

    def result(self):
        self.join(300 * serving.SLOWNESS)
        assert not self.is_alive(), "a stream past its deadline"
        assert self.error is None, self.error
        return {number: (choice.ids, choice.text) for number, choice in self.choices.items()}

    def num_ids(self):
        return sum(len(choice.ids) for choice in list(self.choices.values()))

    def num_resumes(self):
        return sum(choice.finished.usage.num_resumes for choice in self.choices.values())

    def longest_gap(self):
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0)


def start_all(client, count, **options):
    return [Stream(client, request_number(number, **options)) for number in range(count)]


def results(streams):
    return [stream.result() for stream in streams]


def resume(asked, stream):
    """Makes a request whose stream was broken off go on behind what it delivered; again, where that was broken off too."""
    had = {progress.choice: progress for progress in asked.resume.choices}
    for number, choice in stream.choices.items():
        progress = had.get(number) or asked.resume.choices.add(choice=number)
        progress.ids.extend(choice.ids)
        progress.num_text_bytes += len(choice.text.encode())
        progress.finished = choice.finished is not None
        asked.resume.fingerprint = choice.started.fingerprint
