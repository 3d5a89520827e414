#define _GNU_SOURCE
#include "server_functions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ffi.h"
#include "packet.h"

static const char* g_folder;

// Takes a file's name: one component that leads nowhere else. An empty path stands for the folder.
static bool take_path(const TVMFFIAny* arg, bool may_be_empty, char path[PATH_MAX]) {
  char name[NAME_MAX + 1];
  if (!ffi_arg_text(arg, "file name", name, sizeof name)) return false;
  if (may_be_empty && (!*name || strcmp(name, ".") == 0)) {
    snprintf(path, PATH_MAX, "%s", g_folder);
    return true;
  }
  if (!*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
    ffi_fail("ValueError", "board: file name '%.100s': give a name alone, without a folder", name);
    return false;
  }
  if (snprintf(path, PATH_MAX, "%s/%s", g_folder, name) >= PATH_MAX) {
    ffi_fail("ValueError", "board: file name '%.100s' is too long", name);
    return false;
  }
  return true;
}

static int system_error(const char* what, const char* path) {
  int code = errno;
  return ffi_fail("OSError", "board: cannot %s %s: %s", what, strrchr(path, '/') + 1,
                  strerror(code));
}

static bool write_all(int fd, const char* data, size_t size) {
  while (size) {
    ssize_t written = write(fd, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    data += written;
    size -= (size_t)written;
  }
  return true;
}

static int upload(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  (void)result;
  char path[PATH_MAX];
  const char* data;
  size_t size;
  if (!ffi_arg_count("upload", count, 2) || !take_path(&args[0], false, path) ||
      !ffi_arg_bytes(&args[1], "content", &data, &size)) {
    return -1;
  }
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) return system_error("make", path);
  bool good = write_all(fd, data, size);
  if (good) good = close(fd) == 0;
  if (!good) {
    int failed = system_error("write", path);
    close(fd);
    unlink(path);
    return failed;
  }
  return 0;
}

static int download_file(const char* path, TVMFFIAny* result) {
  int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return system_error("read", path);
  struct stat status;
  Text content = {0};
  char block[65536];
  ssize_t got = -1;
  bool regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  while (regular && (got = read(fd, block, sizeof block)) != 0) {
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) break;
    text_add_bytes(&content, block, (size_t)got);
  }
  int failed;
  if (!regular) {
    errno = EINVAL;
    failed = system_error("read", path);
  } else if (got < 0) {
    failed = system_error("read", path);
  } else if (content.failed) {
    failed = ffi_fail("MemoryError", "board: the file is larger than %d MiB", TEXT_MAX >> 20);
  } else {
    failed = ffi_return_bytes(content.data ? content.data : "", content.size, result);
  }
  close(fd);
  text_free(&content);
  return failed;
}

static int download(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[PATH_MAX];
  if (!ffi_arg_count("download", count, 1) || !take_path(&args[0], false, path)) return -1;
  return download_file(path, result);
}

static int download_linked(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[PATH_MAX];
  if (!ffi_arg_count("download_linked_module", count, 1)) return -1;
  if (!take_path(&args[0], false, path)) return -1;
  const char* suffix = strrchr(path, '.');
  if (suffix == NULL || strcmp(suffix, ".so") != 0) {
    return ffi_fail("RuntimeError", "board: there is no linker here; link '%.200s' on the host",
                    strrchr(path, '/') + 1);
  }
  return download_file(path, result);
}

static int remove_file(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  (void)result;
  char path[PATH_MAX];
  if (!ffi_arg_count("remove", count, 1) || !take_path(&args[0], false, path)) return -1;
  return unlink(path) == 0 ? 0 : system_error("remove", path);
}

static int list_folder(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[PATH_MAX];
  if (!ffi_arg_count("listdir", count, 1) || !take_path(&args[0], true, path)) return -1;
  DIR* folder = opendir(path);
  if (folder == NULL) return system_error("list", path);
  Text names = {0};
  for (struct dirent* entry; (entry = readdir(folder)) != NULL;) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    text_addf(&names, "%s%s", names.size ? "," : "", entry->d_name);
  }
  closedir(folder);
  int failed = ffi_return_text(&names, result);
  text_free(&names);
  return failed;
}

static int work_path(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[PATH_MAX];
  if (!ffi_arg_count("workpath", count, 1) || !take_path(&args[0], true, path)) return -1;
  TVMFFIByteArray span = {.data = path, .size = strlen(path)};
  return TVMFFIStringFromByteArray(&span, result);
}

static int load_module(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[PATH_MAX];
  if (!ffi_arg_count("load_module", count, 1) || !take_path(&args[0], false, path)) return -1;
  const char* suffix = strrchr(path, '.');
  if (suffix && (strcmp(suffix, ".tar") == 0 || strcmp(suffix, ".o") == 0)) {
    return ffi_fail("RuntimeError",
                    "board: there is no linker here to load '%.200s'; link it to a .so on the host",
                    strrchr(path, '/') + 1);
  }
  TVMFFIAny file = ffi_text(path);
  return ffi_call_global("ffi.ModuleLoadFromFile", &file, 1, result);
}

bool server_functions_register(const char* folder) {
  g_folder = folder;
  return ffi_register("tvm.rpc.server.upload", upload) &&
         ffi_register("tvm.rpc.server.download", download) &&
         ffi_register("tvm.rpc.server.download_linked_module", download_linked) &&
         ffi_register("tvm.rpc.server.remove", remove_file) &&
         ffi_register("tvm.rpc.server.listdir", list_folder) &&
         ffi_register("tvm.rpc.server.workpath", work_path) &&
         ffi_register("tvm.rpc.server.load_module", load_module);
}
