// Extended attributes and POSIX ACLs.
#include "facts.h"

static char large[70000];

static bool lists(const char *path, const char *name) {
	char list[8192];
	ssize_t length = MUST(listxattr(path, list, sizeof list));
	for (char *at = list; at < list + length; at += strlen(at) + 1)
		if (strcmp(at, name) == 0) return true;
	return false;
}

FACT_NEEDS("xattr", "setxattr, getxattr, listxattr and removexattr of a user attribute") {
	put("f", "");
	char value[32];
	MUST(setxattr("f", "user.colour", "green", 5, 0));
	EQ(MUST(getxattr("f", "user.colour", value, sizeof value)), 5);
	CHECK(memcmp(value, "green", 5) == 0);
	CHECK(lists("f", "user.colour"));
	MUST(removexattr("f", "user.colour"));
	FAILS(ENODATA, getxattr("f", "user.colour", value, sizeof value));
	CHECK(!lists("f", "user.colour"));
}
FACT_NEEDS("xattr", "getxattr of a missing attribute is ENODATA, removexattr too") {
	put("f", "");
	FAILS(ENODATA, getxattr("f", "user.none", NULL, 0));
	FAILS(ENODATA, removexattr("f", "user.none"));
}
FACT_NEEDS("xattr", "XATTR_CREATE on an existing attribute is EEXIST") {
	put("f", "");
	MUST(setxattr("f", "user.a", "1", 1, XATTR_CREATE));
	FAILS(EEXIST, setxattr("f", "user.a", "2", 1, XATTR_CREATE));
}
FACT_NEEDS("xattr", "XATTR_REPLACE on a missing attribute is ENODATA") {
	put("f", "");
	FAILS(ENODATA, setxattr("f", "user.a", "1", 1, XATTR_REPLACE));
	MUST(setxattr("f", "user.a", "1", 1, 0));
	MUST(setxattr("f", "user.a", "22", 2, XATTR_REPLACE));
	EQ(MUST(getxattr("f", "user.a", NULL, 0)), 2);
}
FACT_NEEDS("xattr", "getxattr and listxattr with size 0 give the size, with too little room ERANGE") {
	put("f", "");
	char tiny[2];
	MUST(setxattr("f", "user.abc", "0123456789", 10, 0));
	EQ(MUST(getxattr("f", "user.abc", NULL, 0)), 10);
	FAILS(ERANGE, getxattr("f", "user.abc", tiny, sizeof tiny));
	CHECK(MUST(listxattr("f", NULL, 0)) >= 9);
	FAILS(ERANGE, listxattr("f", tiny, sizeof tiny));
}
FACT_NEEDS("xattr", "an attribute with an empty value exists") {
	put("f", "");
	MUST(setxattr("f", "user.empty", "", 0, 0));
	EQ(MUST(getxattr("f", "user.empty", NULL, 0)), 0);
	CHECK(lists("f", "user.empty"));
}
FACT_NEEDS("xattr", "an attribute's value may hold any bytes") {
	put("f", "");
	char value[256], back[256];
	for (int i = 0; i < 256; i++) value[i] = (char)i;
	MUST(setxattr("f", "user.bytes", value, 256, 0));
	EQ(MUST(getxattr("f", "user.bytes", back, 256)), 256);
	CHECK(memcmp(value, back, 256) == 0);
}
FACT_NEEDS("xattr", "a value of 2,000 bytes is kept") {
	put("f", "");
	memset(large, 'v', 2000);
	MUST(setxattr("f", "user.large", large, 2000, 0));
	EQ(MUST(getxattr("f", "user.large", large, sizeof large > 65536 ? 65536 : sizeof large)), 2000);
}
FACT_NEEDS("xattr", "a value above 64 KiB is E2BIG, a name above 255 bytes ERANGE") {
	put("f", "");
	char name[300] = "user.";
	memset(name + 5, 'n', 256);
	FAILS(E2BIG, setxattr("f", "user.huge", large, 65537, 0));
	FAILS(ERANGE, setxattr("f", name, "v", 1, 0));
}
FACT_NEEDS("xattr", "a name of 255 bytes is kept") {
	put("f", "");
	char name[300] = "user.";
	memset(name + 5, 'n', 250);
	MUST(setxattr("f", name, "v", 1, 0));
	EQ(MUST(getxattr("f", name, NULL, 0)), 1);
	CHECK(lists("f", name));
}
FACT_NEEDS("xattr", "an attribute name without a known prefix is EOPNOTSUPP") {
	put("f", "");
	FAILS(EOPNOTSUPP, setxattr("f", "nonsense.a", "v", 1, 0));
}
FACT_NEEDS("xattr", "fsetxattr and fgetxattr work on an open file") {
	int fd = open_new("f");
	MUST(fsetxattr(fd, "user.a", "1", 1, 0));
	EQ(MUST(fgetxattr(fd, "user.a", NULL, 0)), 1);
	EQ(MUST(getxattr("f", "user.a", NULL, 0)), 1);
	MUST(fremovexattr(fd, "user.a"));
}
FACT_NEEDS("xattr", "attributes work on directories") {
	MUST(mkdir("d", 0755));
	MUST(setxattr("d", "user.a", "1", 1, 0));
	CHECK(lists("d", "user.a"));
}
FACT_NEEDS("xattr", "20 attributes are all listed") {
	put("f", "");
	char name[32];
	for (int i = 0; i < 20; i++) {
		snprintf(name, sizeof name, "user.number%d", i);
		MUST(setxattr("f", name, "v", 1, 0));
	}
	for (int i = 0; i < 20; i++) {
		snprintf(name, sizeof name, "user.number%d", i);
		CHECK(lists("f", name));
	}
}
FACT_NEEDS("xattr", "a user attribute on a symlink is EPERM, through it it reaches the target") {
	put("f", "");
	MUST(symlink("f", "l"));
	FAILS(EPERM, lsetxattr("l", "user.a", "1", 1, 0));
	MUST(setxattr("l", "user.a", "1", 1, 0));
	EQ(MUST(getxattr("f", "user.a", NULL, 0)), 1);
}
FACT_NEEDS("xattr", "a user attribute on a FIFO is EPERM") {
	MUST(mkfifo("p", 0644));
	FAILS(EPERM, setxattr("p", "user.a", "1", 1, 0));
}
FACT_NEEDS("xattr", "an attribute survives rename and is shared by hard links") {
	put("f", "");
	MUST(setxattr("f", "user.a", "1", 1, 0));
	MUST(link("f", "g"));
	MUST(rename("f", "h"));
	EQ(MUST(getxattr("g", "user.a", NULL, 0)), 1);
	EQ(MUST(getxattr("h", "user.a", NULL, 0)), 1);
}
FACT_NEEDS("xattr", "a write by an ordinary user removes security.capability") {
	put("f", "content");
	// VFS_CAP_REVISION_2 with the effective bit, CAP_NET_RAW permitted.
	const unsigned char capability[20] = {1, 0, 0, 2, 0, 0x20};
	MUST(chmod("f", 0777));
	int result = setxattr("f", "security.capability", capability, sizeof capability, 0);
	if (result < 0 && (errno == EPERM || errno == EOPNOTSUPP)) skip("setxattr: %s", strerrorname_np(errno));
	CHECK(result == 0);
	IN_CHILD {
		become(1000, 1000, -1);
		int fd = (int)MUST(open("f", O_WRONLY));
		EQ(MUST(pwrite(fd, "x", 1, 0)), 1);
		MUST(close(fd));
	}
	FAILS(ENODATA, getxattr("f", "security.capability", NULL, 0));
}
FACT_NEEDS("xattr", "trusted attributes are for root only") {
	put("f", "");
	MUST(chmod("f", 0666));
	int result = setxattr("f", "trusted.a", "1", 1, 0);
	if (result < 0 && (errno == EPERM || errno == EOPNOTSUPP)) skip("setxattr: %s", strerrorname_np(errno));
	CHECK(result == 0);
	EQ(MUST(getxattr("f", "trusted.a", NULL, 0)), 1);
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EPERM, setxattr("f", "trusted.b", "1", 1, 0));
		FAILS(ENODATA, getxattr("f", "trusted.a", NULL, 0));
	}
}

// The kernel's binary form of an ACL: a version, then entries.
struct acl_entry {
	uint16_t tag, permissions;
	uint32_t id;
};
struct acl {
	uint32_t version;
	struct acl_entry entries[8];
};
enum { USER_OBJ = 1, USER = 2, GROUP_OBJ = 4, GROUP = 8, MASK = 16, OTHER = 32, NO_ID = -1 };
#define ACL_SIZE(count) (sizeof(uint32_t) + (count) * sizeof(struct acl_entry))

// u::rw- u:1000:rw- g::r-- m::MASK o::---
static struct acl for_user_1000(uint16_t mask) {
	return (struct acl){2, {{USER_OBJ, 6, NO_ID}, {USER, 6, 1000}, {GROUP_OBJ, 4, NO_ID}, {MASK, mask, NO_ID}, {OTHER, 0, NO_ID}}};
}

FACT_NEEDS("acl", "an access ACL lets a named user in and others not") {
	put("f", "content");
	MUST(chmod("f", 0600));
	struct acl acl = for_user_1000(6);
	MUST(setxattr("f", "system.posix_acl_access", &acl, ACL_SIZE(5), 0));
	IN_CHILD {
		become(1000, 1000, -1);
		MUST(open("f", O_RDWR));
	}
	IN_CHILD {
		become(1001, 1001, -1);
		FAILS(EACCES, open("f", O_RDONLY));
	}
	EQ(mode_of("f"), 0660);
}
FACT_NEEDS("acl", "chmod changes an ACL's mask") {
	put("f", "content");
	struct acl acl = for_user_1000(6);
	MUST(setxattr("f", "system.posix_acl_access", &acl, ACL_SIZE(5), 0));
	MUST(chmod("f", 0640));
	IN_CHILD {
		become(1000, 1000, -1);
		MUST(open("f", O_RDONLY));
		FAILS(EACCES, open("f", O_WRONLY));
	}
}
FACT_NEEDS("acl", "a default ACL is inherited by files and directories, and the umask does not count") {
	MUST(mkdir("d", 0755));
	struct acl acl = for_user_1000(6);
	MUST(setxattr("d", "system.posix_acl_default", &acl, ACL_SIZE(5), 0));
	umask(077);
	int fd = (int)MUST(open("d/f", O_CREAT | O_WRONLY, 0666));
	MUST(close(fd));
	MUST(mkdir("d/e", 0777));
	EQ(mode_of("d/f"), 0660);
	CHECK(MUST(getxattr("d/f", "system.posix_acl_access", NULL, 0)) == ACL_SIZE(5));
	CHECK(MUST(getxattr("d/e", "system.posix_acl_default", NULL, 0)) == ACL_SIZE(5));
	MUST(chmod("d", 0755));
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, open("d/g", O_CREAT | O_WRONLY, 0666));
	}
}
FACT_NEEDS("acl", "without a default ACL the umask counts") {
	umask(027);
	MUST(open("f", O_CREAT | O_WRONLY, 0666));
	MUST(mkdir("d", 0777));
	EQ(mode_of("f"), 0640);
	EQ(mode_of("d"), 0750);
}
FACT_NEEDS("acl", "removing the access ACL leaves the mode bits") {
	put("f", "");
	struct acl acl = for_user_1000(6);
	MUST(setxattr("f", "system.posix_acl_access", &acl, ACL_SIZE(5), 0));
	MUST(removexattr("f", "system.posix_acl_access"));
	FAILS(ENODATA, getxattr("f", "system.posix_acl_access", NULL, 0));
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, open("f", O_RDONLY));
	}
}
FACT_NEEDS("acl", "a malformed ACL is EINVAL") {
	put("f", "");
	FAILS(EINVAL, setxattr("f", "system.posix_acl_access", "\2\0\0\0torn!", 9, 0));
}
