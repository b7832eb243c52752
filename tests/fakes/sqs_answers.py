"""A server that answers calls to SQS as it was told to, rightly or not."""

import json
import ssl
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

from fakes.serving import Serving


class SqsAnswers(Serving):
    """Answers every call alike but GetQueueUrl; ``code`` is an error, ``stall`` no answer at all.

    A poll without an error waits for its time and brings no message. ``calls`` has the operations.
    """

    def __init__(
        self,
        *,
        code: str = "",
        said: str = "no",
        status: int = 400,
        stall: bool = False,
        untaken: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``untaken`` batches have a last message that is not taken."""
        self._untaken = untaken
        self.taken: list[str] = []
        """Bodies that came in batches."""
        self.calls: list[str] = []
        self._error = (code, said, status)
        self._stall = stall
        super().__init__(self._handler(), tls=tls)

    def _answer(self, operation: str, asked: dict[str, object]) -> tuple[int, dict[str, object]]:
        self.calls.append(operation)
        code, said, status = self._error
        if operation == "GetQueueUrl" and code != "AWS.SimpleQueueService.NonExistentQueue":
            return 200, {"QueueUrl": f"{self.endpoint}/1/{asked['QueueName']}"}
        if self._stall:
            self.go_on.wait(60)
        if code:
            return status, {"__type": f"com.amazonaws.sqs#{code}", "message": said}
        if operation == "ReceiveMessage":
            self.go_on.wait(float(str(asked["WaitTimeSeconds"])))
        if operation == "SendMessageBatch":
            return 200, self._take(asked["Entries"])  # type: ignore[arg-type]
        return 200, {"MessageId": "1"} if operation == "SendMessage" else {}

    def _take(self, entries: list[dict[str, str]]) -> dict[str, object]:
        failed: list[dict[str, object]] = []
        if self._untaken:
            self._untaken -= 1
            code = {"Code": "InternalError", "Message": "not now", "SenderFault": False}
            failed.append({"Id": entries.pop()["Id"], **code})
        self.taken += [entry["MessageBody"] for entry in entries]
        done = [{"Id": e["Id"], "MessageId": e["Id"], "MD5OfMessageBody": ""} for e in entries]
        return {"Successful": done, "Failed": failed}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                operation = self.headers["X-Amz-Target"].partition(".")[2]
                status, fields = server._answer(operation, asked)
                body = json.dumps(fields).encode()
                self.send_response(status)
                if status != 200:
                    code = str(fields["__type"]).partition("#")[2]
                    self.send_header("x-amzn-query-error", f"{code};Sender")
                self.send_header("Content-Type", "application/x-amz-json-1.0")
                self.send_header("Content-Length", str(len(body)))
                with suppress(OSError):  # who asked may have left
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
