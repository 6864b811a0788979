package com.wasmkiln.client;

import com.wasmkiln.v1.ArtifactHeader;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileTime;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;

/**
 * An open file of the daemon's host store, as docs/how-to/map-artifacts.md says who may own it.
 *
 * <p>Java opens files by their paths. So every folder from the root down to the file has to be such
 * that nobody but root, this process's user and the daemon's user can put another into its place:
 * then the path leads to the same file each time.
 */
final class HostFile implements AutoCloseable {
  private static final int SHARED_WRITE = 0022;
  private static final int STICKY = 01000;
  private static final int TYPE = 0170000;
  private static final int REGULAR = 0100000;
  private static final String SEEN = "unix:dev,ino,mode,nlink,uid,size,lastModifiedTime,ctime";

  private final Path path;
  private final FileChannel channel;
  private final Map<String, Object> seen;

  private HostFile(Path path, FileChannel channel, Map<String, Object> seen) {
    this.path = path;
    this.channel = channel;
    this.seen = seen;
  }

  /** Says why a file does not count. The client then asks for bytes. */
  static final class Useless extends Exception {
    private static final long serialVersionUID = 1L;

    Useless(String why) {
      super(why);
    }
  }

  /** Open the file that a header names. Throw Useless unless it counts. */
  static HostFile open(ArtifactHeader header) throws Useless {
    String module = header.getModuleSha256();
    Path path;
    try {
      path = Path.of(header.getHostFile().getPath());
      Path tail = Path.of(header.getFingerprint(), module.substring(0, 2), module, "artifact");
      if (!path.isAbsolute() || !path.normalize().equals(path) || !path.endsWith(tail)) {
        throw new Useless("the daemon named a path that is not one of a host store");
      }
      // The store's own folder may be reached through a link; what lies in it may not.
      Path folder = path.getParent().getParent().getParent().getParent().toRealPath();
      path = folder.resolve(tail);
      checkFolders(folder, path);
      // Before it is opened: Java would wait for somebody to write to a pipe.
      Map<String, Object> found = checkFile(path, header, ownersOf(folder));
      HostFile file =
          new HostFile(
              path,
              FileChannel.open(path, StandardOpenOption.READ, LinkOption.NOFOLLOW_LINKS),
              found);
      try {
        file.checkUnchanged();
      } catch (Useless | IOException changed) {
        file.close();
        throw changed;
      }
      return file;
    } catch (IOException | IllegalArgumentException | UnsupportedOperationException failure) {
      throw new Useless("cannot open the file: " + failure.getMessage());
    }
  }

  /** Where it is. */
  Path path() {
    return path;
  }

  /** Read all of it. */
  byte[] read() throws IOException {
    ByteBuffer content = ByteBuffer.allocate(Math.toIntExact((long) seen.get("size")));
    while (content.hasRemaining() && channel.read(content, content.position()) >= 0) {}
    if (content.hasRemaining()) {
      throw new IOException("the file changed while it was read");
    }
    return content.array();
  }

  /** Return whether the file may change without a trace in its times, which are coarse. */
  boolean isYoung() {
    long last =
        Math.max(
            ((FileTime) seen.get("lastModifiedTime")).to(TimeUnit.SECONDS),
            ((FileTime) seen.get("ctime")).to(TimeUnit.SECONDS));
    return System.currentTimeMillis() / 1000 - last <= 1;
  }

  /** Throw Useless if somebody wrote to the file since it was opened. */
  void checkUnchanged() throws Useless, IOException {
    if (!attributes(path).equals(seen)) {
      throw new Useless("the file changed while it was read");
    }
  }

  @Override
  public void close() throws IOException {
    channel.close();
  }

  private static Set<Integer> ownersOf(Path folder) throws IOException {
    Set<Integer> owners = new HashSet<>(List.of(0));
    owners.add((Integer) Files.getAttribute(Path.of("/proc/self"), "unix:uid"));
    owners.add((Integer) attributes(folder).get("uid"));
    return owners;
  }

  private static void checkFolders(Path folder, Path file) throws Useless, IOException {
    Set<Integer> owners = ownersOf(folder);
    Integer self = (Integer) Files.getAttribute(Path.of("/proc/self"), "unix:uid");
    Integer owner = (Integer) attributes(folder).get("uid");
    for (Path each = file.getParent(); each != null; each = each.getParent()) {
      Map<String, Object> found = attributes(each);
      int mode = (int) found.get("mode");
      boolean isAbove = !each.startsWith(folder);
      // In a sticky folder nobody can rename what is another's. But anybody could have made the
      // store there: so it counts only if the store is root's or this user's own.
      boolean isSticky =
          isAbove && (mode & STICKY) != 0 && (owner == 0 || owner.equals(self));
      if (!owners.contains((Integer) found.get("uid"))) {
        throw new Useless(each + " belongs to a user who is not trusted");
      }
      if ((mode & SHARED_WRITE) != 0 && !isSticky) {
        throw new Useless("users other than the owner can write to " + each);
      }
    }
  }

  private static Map<String, Object> checkFile(
      Path path, ArtifactHeader header, Set<Integer> owners) throws Useless, IOException {
    Map<String, Object> found = attributes(path);
    var named = header.getHostFile();
    if (((int) found.get("mode") & TYPE) != REGULAR) {
      throw new Useless("the artifact is not a regular file");
    }
    if ((int) found.get("nlink") != 1) {
      throw new Useless("the artifact has " + found.get("nlink") + " names");
    }
    if ((long) found.get("dev") != named.getDevice() || (long) found.get("ino") != named.getInode()) {
      throw new Useless("the path leads to another file here than the daemon's");
    }
    long size = (long) found.get("size");
    if (size == 0 || size != header.getSizeBytes()) {
      throw new Useless("the artifact does not have the size that its header says");
    }
    if (!owners.contains((Integer) found.get("uid"))
        || ((int) found.get("mode") & SHARED_WRITE) != 0) {
      throw new Useless("users who are not trusted can write to the artifact");
    }
    return found;
  }

  private static Map<String, Object> attributes(Path path) throws IOException {
    return Files.readAttributes(path, SEEN, LinkOption.NOFOLLOW_LINKS);
  }
}
