"""A TCP connection that can be cut, or stand still without a sign."""

import socket
import threading


class Proxy:
    """Passes bytes between whoever connects and `target` ("host:port")."""

    def __init__(self, target):
        self.target = target
        self.flows = threading.Event()
        self.flows.set()
        self.sockets = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return  # closed
            try:
                far = self.connect()
            except OSError:
                near.close()  # the target is gone
                continue
            self.sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self.pass_on, args=(one, other), daemon=True).start()

    def connect(self):
        host, _, port = self.target.rpartition(":")
        return socket.create_connection((host, int(port)))

    def pass_on(self, one, other):
        try:
            while data := one.recv(65536):
                self.flows.wait()
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            self.end(end)
            end.close()

    def stall(self):
        """Nothing passes any more; both ends stay connected."""
        self.flows.clear()

    def cut(self):
        """All connections break; new ones are taken."""
        for end in self.sockets:
            self.end(end)

    def end(self, connection):
        """Also for the thread that reads from it; to close it would not be enough."""
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # has broken already

    def close(self):
        self.flows.set()
        self.listener.close()
        self.cut()
