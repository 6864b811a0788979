#!/bin/sh -e
# Builds the client without Maven, by Debian's packages: sh build.sh wasmkiln.jar

needs="grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite grpc-stub
	protobuf guava gson perfmark-api netty-buffer netty-codec netty-codec-http netty-codec-http2
	netty-codec-socks netty-common netty-handler netty-handler-proxy netty-resolver netty-tcnative
	netty-transport netty-transport-native-epoll netty-transport-native-unix-common"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
protos=$here/../../protos
made=$(mktemp -d)
trap 'rm -r "$made"' EXIT
mkdir -p "$made/sources/javax/annotation" "$made/classes"
export CLASSPATH="$made/classes"
# The jar names the others: a line that goes on has one space before it, and names have one between.
echo 'Class-Path: ' > "$made/manifest"
for name in $needs; do
	echo "  file:/usr/share/java/$name.jar" >> "$made/manifest"
	CLASSPATH="$CLASSPATH:/usr/share/java/$name.jar"
done
# Debian's generator asks for an annotation that Java has no more.
echo 'package javax.annotation; public @interface Generated { String value(); String comments(); }' \
	> "$made/sources/javax/annotation/Generated.java"
# Maven gets the classes of google.rpc in a jar; Debian's gRPC comes without it.
protoc -I "$protos" --plugin=protoc-gen-grpc-java="$(command -v grpc_java_plugin)" \
	--java_out="$made/sources" --grpc-java_out="$made/sources" \
	"$protos"/wasmkiln/v1/*.proto "$protos"/google/rpc/*.proto
find "$made/sources" -name '*.java' > "$made/files"
javac --release 17 -nowarn -d "$made/classes" "@$made/files"
# Not all: each version of Java adds some.
lints=cast,deprecation,empty,fallthrough,finally,overrides,rawtypes,removal,serial,static,try
find "$here/src" -name '*.java' > "$made/files"
javac --release 17 -Xlint:$lints,unchecked,varargs -Werror -d "$made/classes" "@$made/files"
jar --create --file "$1" --manifest "$made/manifest" -C "$made/classes" .
