// SPDX-License-Identifier: Apache-2.0
/// Signals and standard streams: what the process must set up before work and check after it.
#pragma once

namespace gmamba::app {

/// SIGINT and SIGTERM ask for a stop, and so does SIGUSR1, as SIGTERM; the second one ends at once;
/// SIGPIPE ends the program as it does for any filter; a file-size limit shows as a write error.
/// Standard streams that are closed are opened so that no file of ours takes their numbers.
void prepare_process();

/// Flushes and closes stdout; throws kIo when what was written did not arrive.
void finish_stdout();

}  // namespace gmamba::app
