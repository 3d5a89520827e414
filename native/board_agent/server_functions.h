// The functions that TVM's clients expect of a server: files in the session's folder, modules.
#ifndef BOARD_AGENT_SERVER_FUNCTIONS_H_
#define BOARD_AGENT_SERVER_FUNCTIONS_H_

#include <stdbool.h>

// Registers `tvm.rpc.server.*`. Files are named, never placed: they lie in `folder`.
bool server_functions_register(const char* folder);

#endif  // BOARD_AGENT_SERVER_FUNCTIONS_H_
