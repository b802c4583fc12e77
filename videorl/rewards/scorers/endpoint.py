"""One request to an OpenAI-compatible API: the text of its reply, or `NoAnswer` that says whether to try again."""

from __future__ import annotations

import asyncio
import email.utils
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx2  # what openai speaks HTTP with
import openai
from pydantic import BaseModel, Field, ValidationError

from videorl.rewards.scorers.judge_params import EndpointParams

NO_KEY = "none"  # the client insists on one
QUOTED = 200  # characters of a server's words in an error
PASSING = (408, 409, 429)  # beside 5xx: another try may be answered


class NoAnswer(Exception):
    """`reason` is "timeout", "unavailable", "refused" or "garbage". `passing`: another try may be answered, no
    earlier than `retry_after` seconds from now. `status` is that of HTTP, where there was a reply."""

    def __init__(
        self, reason: str, message: str, *, passing: bool = True, status: int | None = None, retry_after: float = 0.0
    ):
        super().__init__(reason, message)
        self.reason, self.message, self.passing = reason, message, passing
        self.status, self.retry_after = status, retry_after


class Endpoint:
    """The API at `base_url`. Raises ValueError where `api_key_env` names a variable that is not set."""

    def __init__(self, params: EndpointParams):
        self._key = _read_key(params.api_key_env)
        self._openai = openai.AsyncOpenAI(
            base_url=params.base_url,
            api_key=self._key or NO_KEY,
            max_retries=0,
            timeout=params.timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,  # a redirect would take what is asked to another host
                event_hooks={"response": [_limit_body(params.max_reply_bytes)]},
            ),
            default_headers={"Accept-Encoding": "identity"},  # so that bytes received are bytes held
        )

    async def post(self, request: Mapping[str, Any], seconds: float) -> str:
        """What the model says to a chat request, "" if nothing. Raises NoAnswer, at the latest after `seconds`."""
        try:
            async with asyncio.timeout(seconds):  # the client's own is for each read: a slow trickle would pass it
                reply = await self._openai.chat.completions.with_raw_response.create(**request)
        except (TimeoutError, openai.APITimeoutError):
            raise NoAnswer("timeout", f"no reply within {seconds:.3g} s") from None
        except openai.APIStatusError as error:
            passing = error.status_code in PASSING or error.status_code >= 500
            raise NoAnswer(
                "unavailable" if passing else "refused",
                f"HTTP {error.status_code}: {self._quote(error.response.text)}",
                passing=passing,
                status=error.status_code,
                retry_after=_retry_after(error.response.headers),
            ) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            raise NoAnswer("unavailable", f"{type(cause).__name__}: {self._quote(str(cause))}") from None
        except _TooLong as error:
            raise NoAnswer("garbage", str(error)) from None
        try:
            return _Reply.model_validate_json(reply.content).choices[0].message.content or ""
        except ValidationError:
            raise NoAnswer("garbage", f"not a reply of a chat API: {self._quote(reply.text)}") from None

    async def close(self) -> None:
        """End the connections."""
        await self._openai.close()

    def _quote(self, words: str) -> str:
        """The start of what a server said, without the key that some repeat."""
        return repr((words.replace(self._key, "***") if self._key else words)[:QUOTED])


def _read_key(name: str | None) -> str | None:
    if name is None:
        return None
    if not (key := os.environ.get(name)):
        raise ValueError(
            f"params.api_key_env: {name!r}, no such environment variable in this process; set it where the run starts, "
            "or give null if the server wants no key"
        )
    return key


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: given as such or as a date. 0 where it asks for nothing readable."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


# --- replies without end ---------------------------------------------------------------------------------------------


class _TooLong(Exception):
    pass


class _LimitedBody(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, max_bytes: int):
        self._stream, self._max_bytes = stream, max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max_bytes
        async for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise _TooLong(f"a reply of more than {self._max_bytes} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _limit_body(max_bytes: int) -> Callable[[httpx2.Response], Awaitable[None]]:
    """Stops reading a reply, an error's too, where it becomes too long."""

    async def limit(response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _LimitedBody(response.stream, max_bytes)

    return limit
