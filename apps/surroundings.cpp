// SPDX-License-Identifier: Apache-2.0
#include "apps/surroundings.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "libmamba/core/error.h"
#include "pipelines/stop.h"

namespace gmamba::app {
namespace {

extern "C" void on_stop_signal(int signal) {
  if (stop_requested()) {
    _exit(128 + signal);
  }
  request_stop(signal);
}

/// What batch systems send before they take the machine back: the same wish as SIGTERM.
extern "C" void on_preemption(int) { on_stop_signal(SIGTERM); }

void handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(signal, &action, nullptr);
}

}  // namespace

void prepare_process() {
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
    if (fcntl(stream, F_GETFD) == -1 && errno == EBADF) {
      // a closed stdout must fail when written, not swallow the data
      const int mode = stream == STDERR_FILENO ? O_WRONLY : O_RDONLY;
      if (::open("/dev/null", mode) < 0) return;
    }
  }
  handle(SIGINT, on_stop_signal);
  handle(SIGTERM, on_stop_signal);
  handle(SIGUSR1, on_preemption);
  handle(SIGPIPE, SIG_DFL);
  handle(SIGXFSZ, SIG_IGN);
}

void finish_stdout() {
  const bool flushed = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  const int flush_error = errno;
  const bool closed = ::close(STDOUT_FILENO) == 0;
  const int close_error = errno;
  require(flushed && closed, ErrorKind::kIo,
          "cannot write to standard output: ", std::strerror(flushed ? close_error : flush_error));
}

}  // namespace gmamba::app
