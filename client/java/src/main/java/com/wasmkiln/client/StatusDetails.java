package com.wasmkiln.client;

import com.google.protobuf.ByteString;
import com.google.protobuf.CodedInputStream;
import com.google.protobuf.WireFormat;
import io.grpc.Metadata;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * What a failed call's trailers hold: a google.rpc.Status with an ErrorInfo, a RetryInfo and a
 * BadRequest.
 *
 * <p>It reads the few fields by their numbers: the classes that are generated from google.rpc are in
 * a jar of their own, which not every system has, and of which there should be one only.
 */
final class StatusDetails {
  private static final Metadata.Key<byte[]> KEY =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
  private static final String TYPES = "type.googleapis.com/google.rpc.";
  private static final String DOMAIN = "wasmkiln";
  // An honest error has three details.
  private static final int MAX_DETAILS = 100;
  private static final long MAX_SECONDS = 315_576_000_000L;

  String reason = "";
  Map<String, String> metadata = new HashMap<>();
  Duration retryAfter;
  final List<WasmkilnException.FieldViolation> violations = new ArrayList<>();

  /** Read the trailers as far as they can be read: code and message count in any case. */
  static StatusDetails of(Metadata trailers) {
    StatusDetails details = new StatusDetails();
    byte[] status = trailers == null ? null : trailers.get(KEY);
    if (status == null) {
      return details;
    }
    try {
      List<ByteString> packed = fields(ByteString.copyFrom(status)).bytes(3);
      for (ByteString each : packed.subList(0, Math.min(packed.size(), MAX_DETAILS))) {
        Fields any = fields(each);
        details.add(any.text(1), any.lastBytes(2));
      }
    } catch (IOException damaged) {
      // Of another server, or cut off.
    }
    return details;
  }

  private void add(String type, ByteString value) throws IOException {
    Fields detail = fields(value);
    switch (type) {
      case TYPES + "ErrorInfo" -> {
        if (detail.text(2).equals(DOMAIN)) {
          reason = detail.text(1);
          for (ByteString entry : detail.bytes(3)) {
            metadata.put(fields(entry).text(1), fields(entry).text(2));
          }
        }
      }
      case TYPES + "RetryInfo" -> {
        Fields delay = fields(detail.lastBytes(1));
        long seconds = Math.max(0, Math.min(delay.number(1), MAX_SECONDS));
        retryAfter = Duration.ofSeconds(seconds, Math.max(0, delay.number(2)));
      }
      case TYPES + "BadRequest" -> {
        for (ByteString each : detail.bytes(1)) {
          Fields violation = fields(each);
          violations.add(
              new WasmkilnException.FieldViolation(violation.text(1), violation.text(2)));
        }
      }
      default -> {}
    }
  }

  /** The fields of a message by their numbers. */
  private record Fields(Map<Integer, List<ByteString>> lengths, Map<Integer, Long> numbers) {
    List<ByteString> bytes(int field) {
      return lengths.getOrDefault(field, List.of());
    }

    ByteString lastBytes(int field) {
      List<ByteString> all = bytes(field);
      return all.isEmpty() ? ByteString.EMPTY : all.get(all.size() - 1);
    }

    String text(int field) {
      return lastBytes(field).toStringUtf8();
    }

    long number(int field) {
      return numbers.getOrDefault(field, 0L);
    }
  }

  private static Fields fields(ByteString message) throws IOException {
    Fields found = new Fields(new HashMap<>(), new HashMap<>());
    CodedInputStream input = message.newCodedInput();
    for (int tag = input.readTag(); tag != 0; tag = input.readTag()) {
      int field = WireFormat.getTagFieldNumber(tag);
      switch (WireFormat.getTagWireType(tag)) {
        case WireFormat.WIRETYPE_LENGTH_DELIMITED ->
            found.lengths.computeIfAbsent(field, any -> new ArrayList<>()).add(input.readBytes());
        case WireFormat.WIRETYPE_VARINT -> found.numbers.put(field, input.readInt64());
        default -> input.skipField(tag);
      }
    }
    return found;
  }
}
