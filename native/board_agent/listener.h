// The socket that clients connect to.
#ifndef BOARD_AGENT_LISTENER_H_
#define BOARD_AGENT_LISTENER_H_

#include "options.h"

// Opens it and finds its port; writes the port file. Returns the descriptor, or minus an exit code
// after saying why.
int listener_open(const Options* options, int* port);

// Accepts a connection, with a dead link's detection switched on; -1 if there is none.
int listener_accept(int fd);

#endif  // BOARD_AGENT_LISTENER_H_
