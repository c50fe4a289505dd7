/* Fails file operations below a folder, for processes that have this library in LD_PRELOAD.

   FAULT_FOLDER  only paths below it count; without it nothing does
   FAULT_LOG     each operation below it is appended here: "operation path"
   FAULT         "operation number errno on|once pattern": the operations with this number among
                 those on a path that matches fnmatch's pattern, and all later ones where `on`

   cc -shared -fPIC -o failing_disk.so tests/failing_disk.c -ldl */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static atomic_int n_seen;

static void note(const char *operation, const char *path) {
    const char *log = getenv("FAULT_LOG");
    if (!log) return;
    char line[PATH_MAX + 32];
    int n = snprintf(line, sizeof line, "%s %s\n", operation, path);
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (fd < 0) return;
    syscall(SYS_write, fd, line, n);
    syscall(SYS_close, fd);
}

/* Whether the operation on the path shall fail; sets errno then. */
static int fails(const char *operation, const char *path) {
    int before = errno;
    const char *folder = getenv("FAULT_FOLDER");
    if (!folder || !path) return 0;
    char absolute[PATH_MAX];
    if (path[0] != '/') {
        char cwd[PATH_MAX];
        if (syscall(SYS_getcwd, cwd, sizeof cwd) < 0) return 0;
        if (snprintf(absolute, sizeof absolute, "%s/%s", cwd, path) >= PATH_MAX) return 0;
        path = absolute;
    }
    size_t length = strlen(folder);
    if (strncmp(path, folder, length) || (path[length] && path[length] != '/')) return 0;
    note(operation, path);
    errno = before;
    const char *fault = getenv("FAULT");
    char wanted[16], lasts[8], pattern[PATH_MAX];
    int number, code;
    if (!fault || sscanf(fault, "%15s %d %d %7s %4095s", wanted, &number, &code, lasts, pattern) < 5)
        return 0;
    if (strcmp(wanted, operation) || fnmatch(pattern, path, 0)) return 0;
    int n = atomic_fetch_add(&n_seen, 1) + 1;
    if (n < number || (n > number && strcmp(lasts, "on"))) return 0;
    note("FAILS", path);
    errno = code;
    return 1;
}

static int fails_at(const char *operation, int folder, const char *path) {
    char link[64], whole[PATH_MAX];
    if (!path || path[0] == '/' || folder == AT_FDCWD) return fails(operation, path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, whole, sizeof whole - 1);
    if (n <= 0) return 0;
    snprintf(whole + n, sizeof whole - n, path[0] ? "/%s" : "%s", path);
    return fails(operation, whole);
}

static int fails_on(const char *operation, int fd) {
    if (fd < 3 || !getenv("FAULT_FOLDER")) return 0;
    int before = errno, failing = fails_at(operation, fd, "");
    if (!failing) errno = before;
    return failing;
}

static const char *opening(int flags) {
    return flags & (O_WRONLY | O_RDWR | O_CREAT) ? "create" : "open";
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (fails(opening(flags), path)) return -1; \
        REAL(name); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (fails_at(opening(flags), folder, path)) return -1; \
        REAL(name); \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        if (fails(mode[0] == 'r' && !strchr(mode, '+') ? "open" : "create", path)) return NULL; \
        REAL(name); \
        return real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define CALL(result, failed, name, parameters, arguments, failing) \
    result name parameters { \
        if (failing) return failed; \
        static result (*real) parameters; \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
        return real arguments; \
    }
#define ON_PATH(operation, name, parameters, arguments) \
    CALL(int, -1, name, parameters, arguments, fails(operation, path))
#define ON_FD(result, operation, name, parameters, arguments) \
    CALL(result, -1, name, parameters, arguments, fails_on(operation, fd))

ON_PATH("mkdir", mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH("unlink", unlink, (const char *path), (path))
ON_PATH("rmdir", rmdir, (const char *path), (path))
ON_PATH("truncate", truncate64, (const char *path, off64_t n), (path, n))
ON_PATH("stat", stat64, (const char *path, struct stat64 *s), (path, s))
ON_PATH("stat", lstat64, (const char *path, struct stat64 *s), (path, s))
ON_PATH("statvfs", statvfs64, (const char *path, struct statvfs64 *s), (path, s))
ON_PATH("link", link, (const char *path, const char *target), (path, target))
CALL(int, -1, symlink, (const char *text, const char *path), (text, path), fails("symlink", path))
CALL(DIR *, NULL, opendir, (const char *path), (path), fails("open", path))
CALL(int, -1, fstatat64, (int fd, const char *path, struct stat64 *s, int flags),
     (fd, path, s, flags), fails_at("stat", fd, path))
CALL(int, -1, unlinkat, (int fd, const char *path, int flags), (fd, path, flags),
     fails_at(flags ? "rmdir" : "unlink", fd, path))
CALL(int, -1, rename, (const char *path, const char *target), (path, target),
     fails("rename", target))
CALL(int, -1, renameat, (int fd, const char *path, int to, const char *target),
     (fd, path, to, target), fails_at("rename", to, target))
CALL(int, -1, linkat, (int fd, const char *path, int to, const char *target, int flags),
     (fd, path, to, target, flags), fails_at("link", to, target))

ON_FD(ssize_t, "write", write, (int fd, const void *data, size_t n), (fd, data, n))
ON_FD(ssize_t, "write", writev, (int fd, const struct iovec *data, int n), (fd, data, n))
ON_FD(ssize_t, "write", pwrite64, (int fd, const void *data, size_t n, off64_t at),
      (fd, data, n, at))
ON_FD(ssize_t, "read", read, (int fd, void *data, size_t n), (fd, data, n))
ON_FD(ssize_t, "read", pread64, (int fd, void *data, size_t n, off64_t at), (fd, data, n, at))
CALL(ssize_t, -1, sendfile64, (int fd, int from, off64_t *at, size_t n), (fd, from, at, n),
     fails_on("write", fd))
ON_FD(int, "fsync", fsync, (int fd), (fd))
ON_FD(int, "truncate", ftruncate64, (int fd, off64_t n), (fd, n))
ON_FD(int, "stat", fstat64, (int fd, struct stat64 *s), (fd, s))
ON_FD(int, "lock", lockf64, (int fd, int what, off64_t n), (fd, what, n))
CALL(void *, (void *)-1, mmap64, (void *at, size_t n, int p, int flags, int fd, off64_t offset),
     (at, n, p, flags, fd, offset), fd > 2 && fails_on("mmap", fd))
CALL(void *, (void *)-1, mmap, (void *at, size_t n, int p, int flags, int fd, off_t offset),
     (at, n, p, flags, fd, offset), fd > 2 && fails_on("mmap", fd))

/* Python's fcntl.lockf comes here. */
int fcntl64(int fd, int what, ...) {
    va_list rest;
    va_start(rest, what);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int locks = what == F_SETLK || what == F_SETLKW;
    if (locks && fails_on("lock", fd)) return -1;
    REAL(fcntl64);
    return real(fd, what, argument);
}

/* The file is closed all the same, as Linux does it. */
int close(int fd) {
    int failing = fails_on("close", fd), code = errno;
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "close");
    int result = real(fd);
    if (failing) errno = code;
    return failing ? -1 : result;
}
