package com.wasmkiln.client;

import java.util.regex.Pattern;

/** What an address says about where the daemon is. */
final class Addresses {
  private static final Pattern LOOPBACK = Pattern.compile("127(\\.[0-9]{1,3}){3}");

  private Addresses() {}

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
