package com.wasmkiln.client;

import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** What an address says about where the daemon is. */
final class Addresses {
  private static final Pattern LOOPBACK = Pattern.compile("127(\\.[0-9]{1,3}){3}");

  private static final Pattern SCHEME = Pattern.compile("(https?|grpcs?|tcp)://");
  private static final Pattern NAMED = Pattern.compile("unix:|dns:|[a-z][a-z0-9+.-]*://");
  private static final Pattern PORT = Pattern.compile(".+:([0-9]{1,5})");

  private Addresses() {}

  /** Throw for an address that gRPC would take for something else: without a port, it uses 80. */
  static void check(String address) {
    Matcher scheme = SCHEME.matcher(address);
    if (scheme.lookingAt()) {
      throw new IllegalArgumentException(
          "an address is host:port: leave out the " + scheme.group() + " in front");
    }
    // Any other scheme is one of a resolver that the program has registered.
    if (NAMED.matcher(address).lookingAt()) {
      return;
    }
    Matcher port = PORT.matcher(address);
    int number = port.matches() ? Integer.parseInt(port.group(1)) : 0;
    if (number < 1 || number > 65535) {
      throw new IllegalArgumentException(
          "an address is host:port, with a port from 1 to 65535, not " + address);
    }
  }

  /** Return whether an address is on this machine, as far as it tells by itself. */
  static boolean isLocal(String address) {
    if (address.startsWith("unix:")) {
      return true;
    }
    String bare = address.replaceFirst("^dns:(///)?", "");
    String host = bare.replaceFirst(":[0-9]+$", "").replaceAll("[\\[\\]]", "");
    return host.equals("localhost")
        || host.endsWith(".localhost")
        || host.equals("::1")
        || LOOPBACK.matcher(host).matches();
  }
}
