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
            threading.Thread(target=self.lead, args=(near, far), daemon=True).start()

    def connect(self):
        host, _, port = self.target.rpartition(":")
        return socket.create_connection((host, int(port)))

    def lead(self, near, far):
        back = threading.Thread(target=self.pass_on, args=(far, near), daemon=True)
        back.start()
        self.pass_on(near, far)
        back.join()
        near.close()
        far.close()

    def pass_on(self, one, other):
        """Until `one` ends, also where `other` takes nothing any more: what that has sent before is still on its way."""
        takes = True
        try:
            while data := one.recv(65536):
                self.flows.wait()
                try:
                    if takes:
                        other.sendall(data)
                except OSError:
                    takes = False
        except OSError:
            pass  # reset
        self.end(other, socket.SHUT_WR)

    def stall(self):
        """Nothing passes any more; both ends stay connected."""
        self.flows.clear()

    def cut(self):
        """All connections break; new ones are taken."""
        for end in self.sockets:
            self.end(end, socket.SHUT_RDWR)

    def end(self, connection, directions):
        """Also for the thread that reads from it; to close it would not be enough."""
        try:
            connection.shutdown(directions)
        except OSError:
            pass  # has broken already

    def close(self):
        self.flows.set()
        self.listener.close()
        self.cut()
