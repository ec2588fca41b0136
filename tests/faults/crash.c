/* Preloaded into a process: counts what it does to files below a folder, and kills it at the k-th such call,
   or when it gives a file a certain name. A write at the k-th call is cut in half first.
   Compile: cc -shared -fPIC -O1 -o crash.so crash.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefix[4096], last[256];
static atomic_long count, target;

void crash_arm(const char *folder, long at, const char *name) {
  snprintf(prefix, sizeof prefix, "%s", folder);
  snprintf(last, sizeof last, "/%s", name);
  count = 0;
  target = at;
}

long crash_count(void) { return count; }

static int below(const char *path) { return prefix[0] && strncmp(path, prefix, strlen(prefix)) == 0; }

static int below_fd(int fd) {
  char link[64], path[4096];
  if (!prefix[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

static int below_at(int fd, const char *path) { return path[0] == '/' ? below(path) : fd != AT_FDCWD && below_fd(fd); }

static int now(void) { return atomic_fetch_add(&count, 1) + 1 == target; }

static void die(void) {
  raise(SIGKILL);
  for (;;) pause();
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  if (below_fd(fd) && now()) { real(fd, data, size / 2); die(); }
  return real(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(pwrite);
  if (below_fd(fd) && now()) { real(fd, data, size / 2, at); die(); }
  return real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  REAL(pwrite64);
  if (below_fd(fd) && now()) { real(fd, data, size / 2, at); die(); }
  return real(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
  REAL(writev);
  if (below_fd(fd) && now()) { if (number) write(fd, parts[0].iov_base, parts[0].iov_len / 2); die(); }
  return real(fd, parts, number);
}
#define FD_CALL(name, args, call) int name args { REAL(name); if (below_fd(fd) && now()) die(); return real call; }
FD_CALL(fsync, (int fd), (fd))
FD_CALL(fdatasync, (int fd), (fd))
FD_CALL(ftruncate, (int fd, off_t size), (fd, size))
FD_CALL(ftruncate64, (int fd, off64_t size), (fd, size))
#define PATH_CALL(name, args, call) int name args { REAL(name); if (below(path) && now()) die(); return real call; }
PATH_CALL(unlink, (const char *path), (path))
PATH_CALL(rmdir, (const char *path), (path))
PATH_CALL(mkdir, (const char *path, mode_t mode), (path, mode))
int rename(const char *path, const char *to) {
  REAL(rename);
  size_t size = strlen(to), end = strlen(last);
  if (below(path) && (now() || (end > 1 && size >= end && strcmp(to + size - end, last) == 0))) die();
  return real(path, to);
}
#define AT_CALL(name, args, call) int name args { REAL(name); if (below_at(fd, path) && now()) die(); return real call; }
AT_CALL(unlinkat, (int fd, const char *path, int flags), (fd, path, flags))
AT_CALL(mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode))
AT_CALL(renameat, (int fd, const char *path, int to, const char *name), (fd, path, to, name))
AT_CALL(renameat2, (int fd, const char *path, int to, const char *name, unsigned flags), (fd, path, to, name, flags))
