// The folders of sessions: made for each, removed with it, swept where an agent was killed.
#ifndef BOARD_AGENT_FOLDER_H_
#define BOARD_AGENT_FOLDER_H_

#include <limits.h>
#include <stdbool.h>

typedef struct {
  char path[PATH_MAX];  // this agent's own, in the working folder
  int lock;             // held as long as the agent lives
} WorkFolder;

// Removes what agents that are gone have left in `parent`, and makes this agent's folder there.
bool folder_open(WorkFolder* folder, const char* parent);

// Makes a session's folder; its name comes into `path`.
bool folder_make(const WorkFolder* folder, unsigned long session, char path[PATH_MAX]);

// Removes a folder with all that is in it, following no link. Returns false if something stays.
bool folder_remove(const char* path);

void folder_close(WorkFolder* folder);

#endif  // BOARD_AGENT_FOLDER_H_
