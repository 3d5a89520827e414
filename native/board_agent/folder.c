#define _GNU_SOURCE
#include "folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MAX = 64 };

static const char kPrefix[] = "tvm-mobilenet-agent-";

// Removes what is in the folder that `fd` is open on, and closes it.
static bool remove_content(int fd, int depth) {
  DIR* folder = fdopendir(fd);
  if (folder == NULL) {
    close(fd);
    return false;
  }
  bool good = depth < DEPTH_MAX;
  for (struct dirent* entry; good && (entry = readdir(folder)) != NULL;) {
    const char* name = entry->d_name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
    if (unlinkat(fd, name, 0) == 0) continue;
    int inner = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (inner < 0 && errno == EACCES && fchmodat(fd, name, 0700, 0) == 0) {
      inner = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    }
    good = inner >= 0 && remove_content(inner, depth + 1) && unlinkat(fd, name, AT_REMOVEDIR) == 0;
  }
  closedir(folder);
  return good;
}

bool folder_remove(const char* path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT;
  return remove_content(fd, 0) && rmdir(path) == 0;
}

// Opens and locks a folder; -1 if its owner still has it.
static int lock_folder(const char* path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
    close(fd);
    return -1;
  }
  return fd;
}

static void sweep(const char* parent) {
  DIR* folder = opendir(parent);
  if (folder == NULL) return;
  for (struct dirent* entry; (entry = readdir(folder)) != NULL;) {
    if (strncmp(entry->d_name, kPrefix, strlen(kPrefix)) != 0) continue;
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", parent, entry->d_name) >= (int)sizeof path) continue;
    struct stat status;
    if (lstat(path, &status) != 0 || status.st_uid != geteuid()) continue;
    int lock = lock_folder(path);
    if (lock < 0) continue;
    if (!folder_remove(path)) fprintf(stderr, "agent: %s: cannot be removed\n", path);
    close(lock);
  }
  closedir(folder);
}

bool folder_open(WorkFolder* folder, const char* parent) {
  char real[PATH_MAX];
  if (realpath(parent, real) == NULL) return false;
  sweep(real);
  if (snprintf(folder->path, PATH_MAX, "%s/%sXXXXXX", real, kPrefix) >= PATH_MAX) {
    errno = ENAMETOOLONG;
    return false;
  }
  if (mkdtemp(folder->path) == NULL) return false;
  folder->lock = lock_folder(folder->path);
  return folder->lock >= 0;
}

bool folder_make(const WorkFolder* folder, unsigned long session, char path[PATH_MAX]) {
  if (snprintf(path, PATH_MAX, "%s/%lu", folder->path, session) >= PATH_MAX) {
    errno = ENAMETOOLONG;
    return false;
  }
  return mkdir(path, 0700) == 0;
}

void folder_close(WorkFolder* folder) {
  if (!folder_remove(folder->path)) {
    fprintf(stderr, "agent: %s: cannot be removed\n", folder->path);
  }
  close(folder->lock);
}
